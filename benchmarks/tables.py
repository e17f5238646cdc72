"""Tables of the README and of documents, from result files alone.

python -m benchmarks.tables          (rewrites the text between the markers of each page)
"""

import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import cpu_speed, starter_battery, starter_tables

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
END = "<!-- end -->"
GIB = 1 << 30
LAYERS = 4
"""Layers of the short shape."""


def file_types() -> str:
    """File type, bits and size at full size, the starter's nearness to its F16 vectors and to the original."""
    accuracy, full = (_read(name) for name in ("starter-accuracy", "full-size"))
    sizes = {kind: one["bytes"] for kind, one in full["planned"].items()} | {"F16": full["sizes"]["F16"]["bytes"]}
    bits = {kind: one["bits_per_weight"] for kind, one in full["planned"].items()} | {"F16": 16.0}
    lines = [
        "| type | bits per weight | GiB | mean cosine to F16 | lowest cosine to the original |",
        "|---|---|---|---|---|",
    ]
    for kind in ("F16", *full["planned"]):
        found = accuracy["lowest"][kind]
        row = (
            kind,
            f"{bits[kind]:.2f}",
            f"{sizes[kind] / GIB:.2f}",
            f"{found['mean_to_f16']:.5f}",
            f"{found['original_openvino']:.5f}",
        )
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def speed() -> str:
    """Tokens per second of each side, by file and lengths, and the share of the processor's peak."""
    return "\n".join(_speed_of(found) for found in _speeds())


def _speeds() -> list[dict[str, Any]]:
    """The results of the short shape, a kind of processor each."""
    every = (json.loads(path.read_text()) for path in sorted(RESULTS.glob("cpu-speed-*.json")))
    return [found for found in every if found["shape"] == cpu_speed.SHORT]


def _speed_of(found: dict[str, Any]) -> str:
    machine = found["machine"]
    lines = [f"{found['kind']}, {machine['cores']} cores ({machine['processor']}):", "", cpu_speed.table(found), ""]
    for one in found["files"]:
        shares = ", ".join(
            f"{share:.0%} of the {name} peak ({found['peak_gops'][name]:,.0f})"
            for name, share in one["share_of_peak"].items()
        )
        mixed = f"texts of mixed lengths are at {one['mixed_over_equal']:.0%} of the speed of equal ones"
        said = f"{one['quant']}, matrix products in 10^9 operations a second: {shares}; {mixed}."
        lines += [*textwrap.wrap(said, 120), ""]
    return "\n".join(lines)


def whole() -> str:
    """The same of all layers, tokens per second alone."""
    return cpu_speed.table(_read("cpu-speed-jina-v4-avx-512-vnni")) + "\n"


def arithmetics() -> str:
    """Each arithmetic on each kind of processor: tokens a second, memory; and what it costs in the vector."""
    every = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("arithmetics-*.json"))]
    lines = ["| processor | arithmetic | one of 256 | one of 16 | weights, MiB a layer |", "|---|---|---|---|---|"]
    for found in every:
        for row in found["rows"]:
            speeds, held = row["tokens_per_s"], row["held_bytes"] / LAYERS / (1 << 20)
            cells = (found["kind"], row["arithmetic"], f"{speeds['256']:.0f}", f"{speeds['16']:.0f}", f"{held:.0f}")
            lines.append(f"| {' | '.join(cells)} |")
    for one in (cost for found in every for cost in found.get("cost", [])):
        names = [name for name in one if isinstance(one[name], dict)]
        costs = [f"{1e6 * one[name]['mean']:,.0f}, {1e6 * one[name]['worst']:,.0f}" for name in names]
        lines += [
            "",
            f"| {one['model']}, groups of {one['group']} | {' | '.join(names)} |",
            f"|{'---|' * (1 + len(names))}",
        ]
        lines.append(f"| mean, worst | {' | '.join(costs)} |")
    return "\n".join(lines) + "\n"


def fast() -> str:
    """How many times as fast as llama.cpp, on each kind of processor: a sentence each."""
    return "".join(_fast_on(found) for found in _speeds())


def _fast_on(found: dict[str, Any]) -> str:
    times = {
        (file["quant"], side["side"]): file["sides"][0]["tokens_per_s"][cpu_speed.MIXED]
        / side["tokens_per_s"][cpu_speed.MIXED]
        for file in found["files"]
        for side in file["sides"]
    }
    kinds = [file["quant"] for file in found["files"]]
    native, wheel = (
        " and ".join(f"{times[kind, side]:.1f} times ({kind})" for kind in kinds)
        for side in ("llama.cpp native", "xllamacpp")
    )
    return (
        f"- **Fast.** On two cores with {found['kind']}, {native} as fast as llama.cpp compiled there,\n"
        f"  {wheel} as its prebuilt wheel ([docs/performance.md](docs/performance.md)).\n"
    )


def int8_cost() -> str:
    """What the arithmetic costs in the vector, compared with the file's own rounding, and what that does to nDCG."""
    found = _read("int8-cost")
    columns = ("rounding", "groups of 32", "groups of 64", "groups of 128")
    lines = [
        "| model | file | its own rounding | groups of 32 | groups of 64 | groups of 128 | used |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        if row["file_type"] != "F16":
            cells = [f"{1e6 * row[one]['mean']:,.0f}, {1e6 * row[one]['worst']:,.0f}" for one in columns]
            lines.append(f"| {row['model']} | {row['file_type']} | {' | '.join(cells)} | {row['used']} |")
    lines.append("\nnDCG@10 of the starter in int8 less float32, with its paired interval of 95 %:")
    for row in found["nDCG@10"]:
        mean, low, high = row["difference"]
        lines.append(f"{row['file_type']}, {row['set']}: {mean:+.4f} [{low:+.4f}, {high:+.4f}];")
    return "\n".join(lines).removesuffix(";") + ".\n"


def attention() -> str:
    """Processor time with attention in pages, relative to rectangles."""
    lines = ["| run | tokens at once, pages | rectangles | time per token, pages / rectangles |", "|---|---|---|---|"]
    lines += [
        f"| {row['run']} | {row['paged']['tokens']:,} | {row['rectangles']['tokens']:,} | {row['ratio']:.2f} |"
        for row in _read("attention")["rows"]
    ]
    return "\n".join(lines) + "\n"


def long_texts() -> str:
    """Time and memory of one long text."""
    lines = ["| file | tokens | seconds | tokens/s | additional memory, GiB |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['file']} | {row['tokens']:,} | {row['seconds']:.1f} | {row['tokens_per_s']:.0f} "
        f"| {row['extra_bytes'] / GIB:.2f} |"
        for row in _read("long-text")["rows"]
    ]
    return "\n".join(lines) + "\n"


def loading() -> str:
    """Load time and memory of the full model's file."""
    found = _read("loading")
    kept = found["expanded_bytes"] / GIB
    lines = [
        f"`{found['file']}`, {found['file_bytes'] / GIB:.2f} GiB, at full size ({kept:.2f} GiB expanded):",
        "",
        "| start | load, s | first text, s | resident, GiB |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {one['start']} ({one['engine']}) | {one['load_s']:.1f} | {one['first_text_s']:.1f} "
        f"| {one['resident_bytes'] / GIB:.2f} |"
        for one in found["starts"]
    ]
    return "\n".join(lines) + "\n"


def server() -> str:
    """The server compared with the engine in one process: throughput, one query, a query beside a bulk client."""
    small, wide = _read("server-load"), _read("server-load-jina-v4-short-Q4_K_M")
    lines = ["| what | figure |", "|---|---|"]
    for found in (wide, small):
        one = found["throughput"]
        speeds = one["tokens_per_s"]
        lines.append(
            f"| 64 clients, mixed lengths, {found['model']}: tokens a second | {speeds['nestling']:,.0f}, "
            f"{one['nestling_over_engine']:.0%} of the engine's; llama.cpp's server {speeds['llama.cpp']:,.0f} |"
        )
    lines.append(f"| one short query: HTTP less engine, median | {small['overhead']['p50_overhead_ms']:.2f} ms |")
    beside = small["fairness"]["p99_over_batch"]
    lines.append(f"| a query during requests of 2,000 texts, 99th percentile | {beside:.1f} times one batch |")
    return "\n".join(lines) + "\n"


def instant() -> str:
    """What the server itself can do, by encoding and request size."""
    found = _read("server-instant")
    wide = [row for row in found["rows"] if row["width"] == found["rows"][0]["width"]]
    lines = ["| vectors as | texts a request | tokens/s | tokens per processor second |", "|---|---|---|---|"]
    lines += [
        f"| {row['encoding']} | {row['texts']} | {row['tokens_per_s']:,.0f} | {1e6 / row['server_ms_per_1000']:,.0f} |"
        for row in wide
    ]
    return "\n".join(lines) + "\n"


SPOKEN = {
    "OpenAI": "`/v1/embeddings`, `/v1/models`",
    "Ollama": "`/api/embed`, `/api/embeddings`, `/api/tags`, `/api/show`, `/api/ps`, names with `:latest`",
    "Text Embeddings Inference": "`/embed`, `/embed_all`, `/rerank`, `/tokenize`, `/decode`, `/info`",
    "llama-server": "`/embedding`, `/embeddings`, `/tokenize`, `/detokenize`, `/reranking`, `/props`",
    "Cohere": "v1 and v2: `/embed`, `/rerank`",
    "Voyage": "`/v1/embeddings`, `/v1/multimodalembeddings`, `/v1/rerank` with its fields",
    "Jina": "`/v1/embeddings`, `/v1/rerank` with its fields",
    "vLLM": "`/v1/embeddings` and `/pooling` with `messages`, `/score`, `/rerank`, `/tokenize`",
    "infinity": "`/embeddings`, `/rerank`, `/models`",
}


def clients() -> str:
    """Each API, what of it works, and how many real clients got Python's vectors from it."""
    lines = ["| API | what works | clients that were run |", "|---|---|---|"]
    for api, works in SPOKEN.items():
        run = [one for one in _clients(api).values() if not one["how"].startswith("request")]
        right = sum(one["outcome"] == "ok" for one in run)
        lines.append(f"| {api} | {works} | {right} of {len(run)} right |" if run else f"| {api} | {works} | |")
    return "\n".join(lines) + "\n"


def tried() -> str:
    """Each API's clients with their versions, those whose requests were replayed, and those that failed."""
    lines = []
    for api in SPOKEN:
        found = _clients(api).items()
        run = [_client(name, one) for name, one in found if one["how"] in ("Python", "Node")]
        replayed = [_client(name, one) for name, one in found if one["how"].startswith("request")]
        said = [", ".join(run), f"by their requests: {', '.join(replayed)}" if replayed else ""]
        if any(said):
            lines += textwrap.wrap(f"- {api}: {'; '.join(filter(None, said))}.", 120, subsequent_indent="  ")
    return "\n".join(lines) + "\n"


def _client(name: str, found: dict[str, Any]) -> str:
    version = next(iter(found.get("versions", {}).values()), "")
    return f"{name} {version}".strip() if found["outcome"] == "ok" else f"not {name}: {found['outcome']}"


def _clients(api: str) -> dict[str, Any]:
    return {name: one for name, one in _read("clients")["clients"].items() if one["api"] == api}


CARD = "data/src/nestling_data/starter/checkpoint/README.md"
PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"fast": fast, "clients": clients, "file types": file_types},
    "docs/performance.md": {
        "cpu speed": speed,
        "whole model": whole,
        "arithmetics": arithmetics,
        "int8 cost": int8_cost,
        "full size": loading,
        "attention": attention,
        "long texts": long_texts,
    },
    "docs/moving.md": {"clients": tried},
    "docs/evaluation.md": {"images": starter_tables.images},
    CARD: {
        "parameters": starter_tables.parameters,
        "quality": starter_tables.quality,
        "file types": starter_tables.file_types,
        "images": starter_tables.images,
        "sunset": starter_tables.sunset,
        "maxsim": starter_tables.maxsim,
        "battery": starter_tables.battery,
    },
    "docs/multivectors.md": {"maxsim": starter_tables.maxsim},
    "docs/server.md": {"load": server, "instant": instant},
    "docs/starter.md": {
        "battery": starter_battery.table,
        "verdict": starter_battery.sentence,
        "images": starter_tables.images,
    },
}


def page(name: str) -> str:
    """A page with the tables of today's result files in their places."""
    text = (ROOT / name).read_text("utf-8")
    for title, table in PAGES[name].items():
        head, _, rest = text.partition(f"<!-- table: {title} -->\n")
        text = f"{head}<!-- table: {title} -->\n{table()}{rest[rest.index(END) :]}"
    return text


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


if __name__ == "__main__":
    for name in PAGES:
        (ROOT / name).write_text(page(name), "utf-8")

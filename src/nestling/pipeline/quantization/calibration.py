"""Calibration: run a text through a float model and collect an importance matrix.

The text is cut into chunks of `CHUNK_TOKENS` tokens. Like the texts that a model embeds, each begins with a prefix:
query and passage in turn. The text that ships with nestling-data is described in its `calibration/README.md`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nestling._util.data import data_folder
from nestling._util.files import sha256_file
from nestling._util.progress import Progress, no_progress
from nestling._util.text import read_text
from nestling.engine.lora import Adapter, load_adapters
from nestling.engine.names import EngineName
from nestling.engine.observers import ObserverOptions
from nestling.engine.protocol import TokenIds
from nestling.errors import BuildError
from nestling.formats.gguf import GGUFFile
from nestling.inputs.tokenizer import Tokenizer
from nestling.pipeline.quantization.imatrix import MIN_TOKENS, ImportanceMatrix, collect_imatrix
from nestling.pipeline.quantization.kept_imatrix import CollectMatrix
from nestling.spec import BASE_FIELD, ModelSpec, Role

CHUNK_TOKENS = 512
"""Tokens of a chunk with its prefix: the default of llama-imatrix."""
BATCH = 4
"""Chunks per batch."""
ROLES = (Role.QUERY, Role.PASSAGE)


BUILD_CHUNKS = 48
"""Chunks that a build uses, spread over the text: about 25,000 tokens, some seconds for the starter."""


def default_text() -> Path:
    """The calibration text of nestling-data."""
    return data_folder("calibration", wanted_for="an importance matrix without --calibration") / "calibration.txt"


@dataclass(frozen=True, slots=True)
class Calibration:
    """A calibration text for one model: with its prefixes and tokenizer."""

    spec: ModelSpec
    tokenizer: Tokenizer
    path: Path

    def chunks(self, limit: int | None = None) -> list[TokenIds]:
        """The text as chunks of token ids, or `limit` of them spread over it; BuildError for too short a text."""
        prefixes = self._prefixes()
        ids = self.tokenizer.encode([self._text()])[0]
        if len(ids) < MIN_TOKENS:
            raise BuildError(
                f"{self.path}: {len(ids)} tokens of calibration text; at least {MIN_TOKENS} are needed,"
                " 50 times as many are better"
            )
        every = list(_chunks(ids, prefixes))
        count = min(limit or len(every), len(every))
        return [every[place * len(every) // count] for place in range(count)]

    def texts(self, count: int, *, longest: int, half: int | None = None) -> list[TokenIds]:
        """`count` paragraphs spread over the text (or over `half` 0 or 1 of it), truncated to `longest` tokens.

        Prefixes are those of query and passage in turn.
        """
        paragraphs = [part for part in self._text().split("\n\n") if part.strip()]
        if half is not None:
            paragraphs = paragraphs[half * len(paragraphs) // 2 : (half + 1) * len(paragraphs) // 2]
        if len(paragraphs) < count:
            raise BuildError(f"{self.path}: {len(paragraphs)} paragraphs; {count} are needed, separated by empty lines")
        chosen = [paragraphs[place * len(paragraphs) // count] for place in range(count)]
        prefixed = [self.spec.prefix(ROLES[place % len(ROLES)]) + text for place, text in enumerate(chosen)]
        return [self.tokenizer.cut(self.tokenizer.close(ids), longest) for ids in self.tokenizer.encode(prefixed)]

    def _text(self) -> str:
        return read_text(self.path, error=BuildError)

    def _prefixes(self) -> list[TokenIds]:
        return self.tokenizer.encode([self.spec.prefix(role) for role in ROLES])


def _chunks(ids: TokenIds, prefixes: Sequence[TokenIds]) -> Iterator[TokenIds]:
    """Cut ids into chunks, each with the next prefix; a remainder shorter than half a chunk is left out."""
    start = place = 0
    while len(ids) - start >= CHUNK_TOKENS // 2:
        prefix = prefixes[place % len(prefixes)]
        taken = CHUNK_TOKENS - len(prefix)
        yield np.concatenate([prefix, ids[start : start + taken]])
        start, place = start + taken, place + 1


def collect(
    model: Path,
    *,
    spec: ModelSpec,
    text: Path | None = None,
    on: ObserverOptions,
    limit: int | None = None,
    progress: Progress = no_progress,
) -> ImportanceMatrix:
    """Collect the importance matrix of a float model file, from the shipped calibration text or `text`.

    `limit` uses only that many chunks, spread over the text. `progress` counts tokens. BuildError for a quantized
    model, whose activations differ from those of the float model.
    """
    file = _float_file(model)
    text = text or default_text()
    chunks = Calibration(spec, Tokenizer.from_gguf(file), text).chunks(limit)
    return _observed(file, chunks, text, on=on, progress=progress)


def collect_base(
    model: Path,
    *,
    text: Path | None = None,
    on: ObserverOptions,
    limit: int | None = None,
    progress: Progress = no_progress,
) -> ImportanceMatrix:
    """The same for a base with its LoRA adapters, which take turns over the chunks."""
    file = _float_file(model)
    text, tokenizer, found = text or default_text(), Tokenizer.from_gguf(file), load_adapters(file)
    each = [Calibration(one.spec, tokenizer, text).chunks(limit) for one in found]
    whole = min(map(len, each)) // len(found) * len(found)
    chunks = [each[place % len(found)][place] for place in range(whole)]
    return _observed(file, chunks, text, on=on, progress=progress, adapters=found)


def _float_file(model: Path) -> GGUFFile:
    file = GGUFFile.open(model)
    if quantized := next((one for one in file.tensors.values() if not one.kind.is_float), None):
        raise BuildError(
            f"{model}: {quantized.name} is {quantized.kind.name}; collect the matrix with the F32, F16 or BF16 file"
        )
    return file


def _observed(
    file: GGUFFile,
    chunks: Sequence[TokenIds],
    text: Path,
    *,
    on: ObserverOptions,
    progress: Progress,
    adapters: Sequence[Adapter] = (),
) -> ImportanceMatrix:
    """Run the chunks; with adapters, one chunk per adapter in each batch."""
    return collect_imatrix(
        [chunk.tolist() for chunk in chunks],
        collect=on.load(file, adapters).collect,
        dataset=text.name,
        chunk_size=CHUNK_TOKENS,
        batch=len(adapters) or BATCH,
        progress=progress,
    )


def for_pipeline(*, threads: int, text: Path | None = None, limit: int | None = None) -> CollectMatrix:
    """How a build collects the matrices of its tasks, from `limit` chunks (`BUILD_CHUNKS` by default).

    Always by OpenVINO in float32, so that a build's files have the same bytes on a machine with a GPU.
    """
    on = ObserverOptions(EngineName.OPENVINO, threads=threads)
    limit = limit or BUILD_CHUNKS
    chosen = text or default_text()

    def run(model: Path, progress: Progress) -> ImportanceMatrix:
        file = GGUFFile.open(model)
        if BASE_FIELD in file.metadata:
            return collect_base(model, text=chosen, on=on, limit=limit, progress=progress)
        spec = ModelSpec.from_json(str(file.value("nestling.spec")))
        return collect(model, spec=spec, text=chosen, on=on, limit=limit, progress=progress)

    return CollectMatrix(run, f"{sha256_file(chosen)} {limit}", limit * CHUNK_TOKENS)

"""The benchmark for a card, tiny, on a processor: every line of it runs but for those marked `# on a card`.

It gets five minutes on a borrowed card: a slip in a line that never ran would cost them. Peers are fakes here.
"""

import dis
import inspect
import json
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType, SimpleNamespace
from typing import Any, Self

import pytest
import torch
from benchmarks import gpu_correctness, gpu_peers, gpu_plan, gpu_rates, gpu_speed, measuring
from benchmarks.gpu_plan import Plan, full

from nestling.engine.arithmetic import ArithmeticName
from nestling.engine.torch.devices import place
from nestling.errors import EngineError

SCRIPT = (gpu_correctness, gpu_peers, gpu_plan, gpu_rates, gpu_speed)
BENCH = """#!{python}
import json, sys
lengths = sys.argv[sys.argv.index("-p") + 1].split(",")
print(json.dumps([dict(n_prompt=int(one), avg_ts=7.5, build_commit="abc", backends="CUDA") for one in lengths]))
"""
BROKEN = """#!{python}
import sys
sys.exit("error: failed to load model")
"""
PYTHON = """#!{python}
import json, sys
print(0.25)
for line in sys.stdin:
    assert len(json.loads(line)) == 3
    print(0.5)
"""


class FakeQwen2:
    """Embeds ids, and no more."""

    def __init__(self, config: SimpleNamespace) -> None:
        self.table = torch.randn(config.vocab_size, config.hidden_size)

    def to(self, dtype: torch.dtype) -> Self:
        self.table = self.table.to(dtype)
        return self

    def eval(self) -> Self:
        return self

    def __call__(self, input_ids: Any, attention_mask: Any, *, use_cache: bool) -> Any:
        assert input_ids.shape == attention_mask.shape
        assert not use_cache
        return SimpleNamespace(last_hidden_state=self.table[input_ids])


@contextmanager
def traced(files: set[str]) -> Iterator[dict[str, set[int]]]:
    """The lines of these files that run meanwhile, in any thread."""
    ran: dict[str, set[int]] = defaultdict(set)

    def line(frame: FrameType, event: str, _argument: object) -> Any:
        if event == "line":
            ran[frame.f_code.co_filename].add(frame.f_lineno)
        return line

    def call(frame: FrameType, _event: str, _argument: object) -> Any:
        return line if frame.f_code.co_filename in files else None

    before = sys.gettrace()
    threading.settrace(call)
    sys.settrace(call)
    try:
        yield ran
    finally:
        sys.settrace(before)
        threading.settrace(before)


def lines_of(path: str) -> set[int]:
    """Lines of a file's functions, without those for a card."""
    source = Path(path).read_text("utf-8")
    marked = {number for number, text in enumerate(source.splitlines(), 1) if text.endswith("# on a card")}
    found: set[int] = set()
    waiting = [one for one in compile(source, path, "exec").co_consts if isinstance(one, CodeType)]
    while waiting:
        code = waiting.pop()
        waiting += [one for one in code.co_consts if isinstance(one, CodeType)]
        if code.co_flags & inspect.CO_OPTIMIZED:  # no class, whose body runs when it is imported
            found |= {number for _, number in dis.findlinestarts(code) if number and number != code.co_firstlineno}
    return found - marked


def program(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text.format(python=sys.executable))
    path.chmod(0o755)
    return path


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """One timed run of each."""
    monkeypatch.setattr("nestling.engine.torch.choice.TRIALS", 1)


@pytest.mark.usefixtures("few")
def test_every_line_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.gpu_speed.usable_threads", lambda: 1)
    library = SimpleNamespace(Qwen2Config=SimpleNamespace, Qwen2Model=FakeQwen2, __version__="9")
    bench = program(tmp_path, "llama-bench", BENCH)
    with traced({str(module.__file__) for module in SCRIPT}) as ran:
        monkeypatch.setitem(sys.modules, "transformers", library)
        path = gpu_speed.main(["--quick", "--device", "cpu", "--llama", str(bench)])
        result = json.loads(path.read_text())
        monkeypatch.setitem(sys.modules, "transformers", None)
        late = Plan(place("cpu", threads=1), [], full(2), tmp_path, until=0)
        assert late.is_over
        assert gpu_peers.transformers(late)["skipped"].startswith("transformers is not installed")
        assert gpu_peers.llama(late) == {"skipped": "no --llama"}
        peers(tmp_path)
        wrong(monkeypatch)
    for name in gpu_speed.PARTS:
        assert result[name], name
    assert all(one["passed"] for one in result["correctness"])
    assert result["llama.cpp"]["tokens/s at 40"] == 7.5
    assert result["transformers"]["version"] == "9"
    assert result["bf16"]["queries"][-1]["trial"]
    missed = {
        f"{Path(file).name}:{number}" for file in map(str, (one.__file__ for one in SCRIPT))
        for number in lines_of(file) - ran[file]
    }  # fmt: skip
    assert not missed, sorted(missed)


def peers(folder: Path) -> None:
    """A Python with llama-cpp-python, and a build that cannot load the file."""
    sizes, on = gpu_plan.quick(), place("cpu", threads=1)
    found = [
        gpu_peers.llama(Plan(on, [on], sizes, folder, program(folder, name, text)))
        for name, text in (("python-with-llama", PYTHON), ("broken", BROKEN))
    ]
    assert found == [{"tokens/s mixed": sum(sizes.mixed) / 0.5}, {"failed": "error: failed to load model"}]
    over = gpu_rates.measured(Plan(on, [on], sizes, folder, until=0), ArithmeticName.BF16)
    assert "tokens/s mixed" in over
    assert not any(name.startswith("tokens/s at") for name in over)


def failing(plan: Plan) -> Any:
    raise EngineError(f"{plan.on.device}: out of memory")


def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that fails is named, one without time too; a wrong result ends the run before anything is timed."""
    monkeypatch.setattr(gpu_speed, "PARTS", {"peaks": failing})
    monkeypatch.setattr(gpu_speed, "correctness", lambda _plan: iter([]))
    made = [gpu_speed.main(["--quick", "--device", "cpu", *more]).read_text() for more in ([], ["--minutes", "0"])]
    assert [json.loads(one)["peaks"] for one in made] == [{"failed": "cpu: out of memory"}, gpu_speed.OUT_OF_TIME]
    bad = gpu_correctness.line("kernel norm", float("nan"), 0.01)
    monkeypatch.setattr(gpu_speed, "correctness", lambda _plan: iter([bad]))
    with pytest.raises(SystemExit, match="wrong: kernel norm"):
        gpu_speed.main(["--quick", "--device", "cpu"])

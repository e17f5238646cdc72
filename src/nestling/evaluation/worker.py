"""A model in a child process, so that its memory is measured separately and a crash ends nothing else.

The parent sends texts and receives the seconds of each stage; see `LocalContender`.
"""

import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from nestling.errors import EngineError, NestlingError
from nestling.models.embedder import Embedder
from nestling.spec import Role
from nestling.vectors import to_base64

STAGES = ("tokenize", "forward", "serialize")
STOP_S = 10


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over some texts: total tokens, total seconds, seconds by stage (empty if unknown)."""

    tokens: int
    seconds: float
    stages_s: dict[str, float]


class Worker:
    """A model file loaded in a child process; its NestlingErrors are raised in the parent."""

    def __init__(self, path: Path, *, engine: str, threads: int | None, device: str | None = None) -> None:
        options = {"engine": engine, "device": device, "threads": threads}
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._name = path.name
        self._process = context.Process(target=_serve, args=(theirs, path, options), daemon=True)
        self._process.start()
        theirs.close()
        self.load_time_s, self.engine = self._answer()

    def run(self, texts: Sequence[str]) -> Pass:
        """Embed the texts as documents in one call."""
        found: Pass = self._ask(list(texts))
        return found

    def peak_memory_bytes(self) -> int:
        """The child's peak resident memory."""
        found: int = self._ask(None)
        return found

    def close(self) -> None:
        """End the child."""
        self._pipe.close()
        self._process.join(STOP_S)
        if self._process.is_alive():
            self._process.kill()

    def _ask(self, question: list[str] | None) -> Any:  # noqa: ANN401 - what was asked for
        with suppress(OSError):  # the child has died; reading the answer reports it
            self._pipe.send(question)
        return self._answer()

    def _answer(self) -> Any:  # noqa: ANN401 - what was asked for
        try:
            answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(STOP_S)
            raise EngineError(f"{self._name}: its process died (exit code {self._process.exitcode})") from None
        if isinstance(answer, NestlingError):
            raise answer
        return answer


def _serve(pipe: Connection, path: Path, options: dict[str, Any]) -> None:
    """The child: load, send (seconds, engine), answer a list of texts with a Pass and None with the peak memory."""
    try:
        began = time.perf_counter()
        embedder = Embedder.load(path, **options)
        embed(embedder, ["warm"])  # some engines load on first use
        pipe.send((time.perf_counter() - began, embedder.engine.name))
        while True:
            asked = pipe.recv()
            pipe.send(peak_memory_bytes() if asked is None else embed(embedder, asked))
    except NestlingError as error:
        pipe.send(EngineError(str(error)))
    except (EOFError, KeyboardInterrupt):
        return


def embed(embedder: Embedder, texts: Sequence[str]) -> Pass:
    """One pass: tokenize, embed, and serialize the vectors as a base64 response."""
    marks = [time.perf_counter()]
    ids = embedder.tokenize(texts, prompt_name=Role.PASSAGE)
    marks.append(time.perf_counter())
    vectors = embedder.embed_ids(ids)
    marks.append(time.perf_counter())
    json.dumps([{"index": index, "embedding": to_base64(row)} for index, row in enumerate(vectors)])
    marks.append(time.perf_counter())
    stages = {stage: after - before for stage, before, after in zip(STAGES, marks, marks[1:], strict=False)}
    return Pass(sum(map(len, ids)), marks[-1] - marks[0], stages)


def peak_memory_bytes() -> int:
    """Peak resident memory of this process: Linux's VmHWM, which unlike ru_maxrss does not include the parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text("utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

"""Benchmark targets: a local engine or an HTTP server, behind one interface."""

import json
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nestling.errors import EngineError
from nestling.evaluation.encoders import RemoteEncoder
from nestling.evaluation.remote import Connection
from nestling.evaluation.results import ModelFacts
from nestling.evaluation.settings import on_device
from nestling.evaluation.texts import TextSource
from nestling.evaluation.worker import Pass, Worker
from nestling.spec import Role, Task

LARGEST_REQUEST = 256


@dataclass(frozen=True, slots=True)
class Cell:
    """A latency measurement: concurrent clients with `inputs` texts per request; 0 clients are calls in process."""

    clients: int
    inputs: int


@dataclass(frozen=True, slots=True)
class Volley:
    """The requests of one cell and round: latency of each, total tokens and seconds, seconds by server stage."""

    samples_ms: list[float]
    tokens: int
    seconds: float
    stages_s: dict[str, float]


class Contender(Protocol):
    """One participant of a comparison: a model in an engine, or a server."""

    facts: ModelFacts
    engine: str
    load_time_s: float | None
    cells: tuple[Cell, ...]

    def run(self, texts: Sequence[str]) -> Pass:
        """Embed all texts, as fast as possible."""
        ...

    def ask(self, cell: Cell, source: TextSource, *, tokens: int, seconds: float) -> Volley:
        """Send requests for `seconds`, with texts of `tokens` tokens; each client at least one."""
        ...

    def peak_memory_bytes(self) -> int | None:
        """Peak memory in bytes; None if unknown."""
        ...

    def close(self) -> None:
        """Free its resources."""
        ...


class LocalContender:
    """A model file in a child process."""

    cells: tuple[Cell, ...] = (Cell(0, 1),)

    def __init__(
        self, facts: ModelFacts, path: Path, *, engine: str, threads: int | None, device: str | None = None
    ) -> None:
        self._worker = Worker(path, engine=engine, threads=threads, device=device)
        self.facts, self.engine = facts, on_device(self._worker.engine, device)
        self.load_time_s: float | None = self._worker.load_time_s

    def run(self, texts: Sequence[str]) -> Pass:
        """Embed the texts in one call."""
        return self._worker.run(texts)

    def ask(self, cell: Cell, source: TextSource, *, tokens: int, seconds: float) -> Volley:
        """Embed texts, call by call."""
        passes: list[Pass] = []
        while not passes or sum(one.seconds for one in passes) < seconds:
            passes.append(self.run(source.batch(tokens, cell.inputs)))
        total = sum(one.seconds for one in passes)
        return Volley([1000 * one.seconds for one in passes], sum(one.tokens for one in passes), total, {})

    def peak_memory_bytes(self) -> int | None:
        """The child's peak resident memory; None if the child has died."""
        try:
            return self._worker.peak_memory_bytes()
        except EngineError:
            return None

    def close(self) -> None:
        """End the child."""
        self._worker.close()


class RemoteContender:
    """An OpenAI-compatible server, with connections of its own."""

    engine = "server"
    load_time_s: float | None = None

    def __init__(self, url: str, *, task: Task, cells: tuple[Cell, ...]) -> None:
        self.facts, self.cells = ModelFacts(url), cells
        self._encoder = RemoteEncoder(url, task=task)
        self._address = url.partition("#")[0]
        self._connection = Connection(self._address)

    def run(self, texts: Sequence[str]) -> Pass:
        """Embed the texts, at most `LARGEST_REQUEST` per request."""
        bodies = [self._body(texts[start : start + LARGEST_REQUEST]) for start in range(0, len(texts), LARGEST_REQUEST)]
        began = time.perf_counter()
        answers = [self._connection.post(body) for body in bodies]
        seconds = time.perf_counter() - began
        return Pass(sum(map(self._tokens, answers)), seconds, {})

    def ask(self, cell: Cell, source: TextSource, *, tokens: int, seconds: float) -> Volley:
        """Send requests from `cell.clients` threads in a closed loop, each with its own connection."""
        before, lock = self._connection.stages(), threading.Lock()
        began = time.perf_counter()

        def client(_: int) -> list[tuple[float, bytes]]:
            connection = Connection(self._address)
            found: list[tuple[float, bytes]] = []
            while not found or time.perf_counter() - began < seconds:
                with lock:
                    body = self._body(source.batch(tokens, cell.inputs))
                asked = time.perf_counter()
                answer = connection.post(body)
                found.append((1000 * (time.perf_counter() - asked), answer))
            connection.close()
            return found

        with ThreadPoolExecutor(cell.clients) as pool:
            answers = [one for found in pool.map(client, range(cell.clients)) for one in found]
        total, after = time.perf_counter() - began, self._connection.stages()
        stages = {stage: value - before.get(stage, 0.0) for stage, value in after.items()}
        return Volley([ms for ms, _ in answers], sum(self._tokens(answer) for _, answer in answers), total, stages)

    def peak_memory_bytes(self) -> int | None:
        """Unknown."""
        return None

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()
        self._encoder.close()

    def _body(self, texts: Sequence[str]) -> bytes:
        body = {**self._encoder.body(texts, role=Role.PASSAGE), "encoding_format": "base64"}
        return json.dumps(body).encode()

    def _tokens(self, answer: bytes) -> int:
        try:
            return int(json.loads(answer)["usage"]["prompt_tokens"])
        except (ValueError, KeyError, TypeError):
            raise EngineError(f"{self.facts.reference}: the response has no usage.prompt_tokens") from None

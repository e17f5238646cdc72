"""Stock llama.cpp through xllamacpp: proves that our files run there, and serves where memory matters more than speed.

Its traps are avoided here: it is handed token ids (its own Qwen2 tokenizer skips NFC), one unified key-value cache
(with several slots and texts of different lengths its vectors are wrong otherwise), and a micro-batch that holds the
longest text whole, because its mean pooling is wrong across micro-batches. When a text longer than the micro-batch
comes, the model is opened again with a larger one.

Its server always listens: here on a socket in a folder that only this user can enter, and not on a port of the
machine. Pooled vectors are asked for in the process; token states have no other way out than that socket.
"""

import json
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import xllamacpp

from nestling.engine import batching
from nestling.engine.lora import Adapter
from nestling.engine.protocol import Shape, TokenIds
from nestling.errors import EngineError
from nestling.formats.gguf import GGUFFile
from nestling.spec import Pooling
from nestling.vectors import Floats

SMALLEST_BATCH = 512
SLOTS = 16
NO_POOLING = 0
"""llama.cpp's number for the states of all tokens (`enum llama_pooling_type`)."""


class LlamaCppEngine:
    """A GGUF file run by llama.cpp's server code, in process; token states need a second opening of the file.

    So does each adapter: the server applies the same to all its texts. What the openings map of the file they share.
    """

    name = "llamacpp"

    def __init__(
        self, file: GGUFFile, *, threads: int, pooling: Pooling = Pooling.MEAN, adapters: Sequence[Adapter] = ()
    ) -> None:
        self._shape, self._lock = Shape.of(file), threading.Lock()
        files: list[Path | None] = [one.file.path for one in adapters]
        files = files or [None]
        self._pooled = [_Server(file.path, threads, pooling.gguf_value, adapter) for adapter in files]
        self._tokens = [_Server(file.path, threads, NO_POOLING, adapter) for adapter in files]

    def pool(self, sequences: Sequence[TokenIds], *, adapters: Sequence[int] = ()) -> Floats:
        """The final hidden states of each sequence, pooled: B sequences -> (B, D)."""
        pooled = np.empty((len(sequences), self._shape.hidden), np.float32)
        with self._lock:
            for server, batch in _planned(self._pooled, sequences, adapters):
                pooled[batch] = server.embed([sequences[index].tolist() for index in batch])
        return pooled

    def token_states(
        self, sequences: Sequence[TokenIds], *, adapters: Sequence[int] = ()
    ) -> Iterator[tuple[int, Floats]]:
        """The final hidden states of each sequence: yields (its place, (T, D)), an adapter's longest first."""
        with self._lock:
            plan = list(_planned(self._tokens, sequences, adapters))
        for server, batch in plan:
            with self._lock:
                states = server.states([sequences[index].tolist() for index in batch])
            yield from zip(batch, states, strict=True)

    def close(self) -> None:
        """Give the model back."""
        with self._lock:
            for server in (*self._pooled, *self._tokens):
                server.close()


def _planned(
    servers: "Sequence[_Server]", sequences: Sequence[TokenIds], adapters: Sequence[int]
) -> "Iterator[tuple[_Server, list[int]]]":
    """Which sequences go through which server together; each server's are its own adapter's."""
    chosen = np.array(adapters or [0] * len(sequences), np.int64)
    for place in np.unique(chosen):
        mine = np.flatnonzero(chosen == place).tolist()
        for batch in servers[place].plan([sequences[index] for index in mine]):
            yield servers[place], [mine[index] for index in batch]


class _Server:
    """The file opened with one way of pooling and at most one adapter, as soon as it is asked for something."""

    def __init__(self, path: Path, threads: int, pooling: int, adapter: Path | None) -> None:
        self._path, self._threads, self._pooling, self._adapter = path, threads, pooling, adapter
        self._server: Any = None
        self._tidy: Callable[[], object] = _nothing
        self._batch_tokens, self._socket = 0, ""

    def plan(self, sequences: Sequence[TokenIds]) -> list[list[int]]:
        """Open it for the longest of these and say which go through it together."""
        lengths = [len(ids) for ids in sequences]
        self._open(max(lengths, default=1))
        return batching.plan(lengths, self._batch_tokens)

    def embed(self, sequences: list[list[int]]) -> Floats:
        """One row each: (B, D)."""
        answer = self._server.handle_embeddings({"input": sequences, "model": "nestling"})
        answer = answer if isinstance(answer, dict) else json.loads(answer)
        return np.array([row["embedding"] for row in self._rows(answer, answer.get("data"))], np.float32)

    def states(self, sequences: list[list[int]]) -> list[Floats]:
        """One row a token: B arrays of (T, D)."""
        answer = self._ask({"content": sequences})
        return [np.array(row["embedding"], np.float32) for row in self._rows(answer, answer)]

    def close(self) -> None:
        """Give it back."""
        self._server, self._batch_tokens = None, 0
        self._tidy()

    def _rows(self, answer: Any, rows: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - JSON
        if not isinstance(rows, list):
            raise EngineError(f"{self._path}: llama.cpp answered {json.dumps(answer)[:200]}")
        return sorted(rows, key=lambda row: int(row["index"]))

    def _open(self, longest: int) -> None:
        if longest <= self._batch_tokens:
            return
        self.close()  # the old one's memory goes first
        self._batch_tokens = max(SMALLEST_BATCH, 1 << (longest - 1).bit_length())
        folder = tempfile.mkdtemp(prefix="nestling-")
        self._socket, self._tidy = f"{folder}/llama.sock", weakref.finalize(self, shutil.rmtree, folder, True)  # noqa: FBT003 - no errors: the folder may be gone
        try:
            self._server = xllamacpp.Server(self._params())
        except RuntimeError as error:
            self.close()
            raise EngineError(f"{self._path}: llama.cpp does not load this file ({error})") from error

    def _params(self) -> Any:  # noqa: ANN401 - xllamacpp has no types
        params = xllamacpp.CommonParams()
        params.model.path = str(self._path)
        params.embedding, params.embd_normalize = True, -1
        params.pooling_type = xllamacpp.llama_pooling_type(self._pooling)
        if self._adapter:
            lora = xllamacpp.CommonAdapterLoraInfo()
            lora.path, lora.scale = str(self._adapter), 1.0
            params.lora_adapters = [lora]
        params.n_ctx = params.n_batch = params.n_ubatch = self._batch_tokens
        params.n_parallel, params.kv_unified = SLOTS, True
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = self._threads
        params.cpuparams.poll = params.cpuparams_batch.poll = 0  # waiting threads sleep: 1.7 x faster beside other work
        params.no_extra_bufts = True  # or most weights are there a second time, in an order that is slower on AVX-512
        params.warmup, params.verbosity, params.hostnames = False, -1, [self._socket]
        return params

    def _ask(self, question: dict[str, Any]) -> Any:  # noqa: ANN401 - JSON
        over_socket = httpx.HTTPTransport(uds=self._socket, verify=False)  # plain HTTP over a file
        try:
            with httpx.Client(transport=over_socket, timeout=None, trust_env=False) as client:  # noqa: S113 - a batch takes as long as it takes
                return client.post("http://localhost/embeddings", json=question).json()
        except (httpx.HTTPError, ValueError) as error:
            raise EngineError(f"{self._path}: llama.cpp does not answer ({error})") from error


def _nothing() -> None:
    """Tidies up when there is nothing to tidy."""

"""Stock llama.cpp through xllamacpp: proves that our files run there, and serves where memory matters more than speed.

Three of its traps are avoided: it gets token ids (its own Qwen2 tokenizer skips NFC); it uses one unified KV cache
(otherwise vectors are wrong with several slots and texts of different lengths); and a micro-batch holds the longest
text whole (its mean pooling is wrong across micro-batches). A batch larger than the micro-batch reloads the model
with a larger one.

Its server always listens: here on a Unix socket in a folder that only this user can enter, never on a port. Pooled
vectors are read in process; token states are only available over that socket.
"""

import json
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from math import inf
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import xllamacpp

from nestling.engine.hyperparameters import Hyperparameters
from nestling.engine.lora import Adapter
from nestling.engine.protocol import Item
from nestling.errors import EngineError
from nestling.formats.gguf import GGUFFile
from nestling.spec import Pooling
from nestling.vectors import Floats

SMALLEST_BATCH = 512
SLOTS = 16
NO_POOLING = 0
"""llama.cpp's pooling type for the states of all tokens (`enum llama_pooling_type`)."""


class LlamaCppEngine:
    """A GGUF file run by llama.cpp's server code, in process.

    Token states need a second instance, and so does each LoRA adapter, since an instance applies the same adapter to
    all its texts. The instances share the mmapped file.
    """

    name = "llamacpp"
    token_budget = SMALLEST_BATCH
    spare_pairs = inf
    reason = "asked for by name"

    def __init__(
        self, file: GGUFFile, *, threads: int, pooling: Pooling = Pooling.MEAN, adapters: Sequence[Adapter] = ()
    ) -> None:
        self._hidden, self._lock = Hyperparameters.of(file).hidden, threading.Lock()
        files: list[Path | None] = [one.file.path for one in adapters]
        files = files or [None]
        self._pooled = [_Server(file.path, threads, pooling.gguf_value, adapter) for adapter in files]
        self._tokens = [_Server(file.path, threads, NO_POOLING, adapter) for adapter in files]

    def pool(self, items: Sequence[Item], *, adapters: Sequence[int] = ()) -> Floats:
        """Pooled hidden states of a batch: B items -> (B, D). EngineError for an image."""
        pooled = np.empty((len(items), self._hidden), np.float32)
        with self._lock:
            for server, places in _shared_out(self._pooled, items, adapters):
                pooled[places] = server.embed([items[place].ids.tolist() for place in places])
        return pooled

    def token_states(self, items: Sequence[Item], *, adapters: Sequence[int] = ()) -> list[Floats]:
        """Hidden states of a batch: B items -> B arrays of (T, D). EngineError for an image."""
        states: dict[int, Floats] = {}
        with self._lock:
            for server, places in _shared_out(self._tokens, items, adapters):
                found = server.states([items[place].ids.tolist() for place in places])
                states.update(zip(places, found, strict=True))
        return [states[place] for place in range(len(items))]

    def close(self) -> None:
        """Free the model."""
        with self._lock:
            for server in (*self._pooled, *self._tokens):
                server.close()


def _shared_out(
    servers: "Sequence[_Server]", items: Sequence[Item], adapters: Sequence[int]
) -> "Iterator[tuple[_Server, list[int]]]":
    """Split a batch by adapter: yields (server, places of its items); each server is opened large enough."""
    for item in items:
        if item.rows is not None or item.positions is not None:
            raise EngineError(
                "the llamacpp engine takes token ids only: llama.cpp's server has no input for an image's rows and"
                " positions; use engine=openvino"
            )
    chosen = np.array(adapters or [0] * len(items), np.int64)
    for place in np.unique(chosen):
        mine = np.flatnonzero(chosen == place).tolist()
        servers[place].open(sum(len(items[index]) for index in mine))
        yield servers[place], mine


class _Server:
    """One instance of the file: one pooling type, at most one adapter; loaded on its first batch."""

    def __init__(self, path: Path, threads: int, pooling: int, adapter: Path | None) -> None:
        self._path, self._threads, self._pooling, self._adapter = path, threads, pooling, adapter
        self._server: Any = None
        self._tidy: Callable[[], object] = _nothing
        self._batch_tokens, self._socket = 0, ""

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
        """Free the instance and its socket folder."""
        self._server, self._batch_tokens = None, 0
        self._tidy()

    def _rows(self, answer: Any, rows: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - JSON
        if not isinstance(rows, list):
            raise EngineError(f"{self._path}: llama.cpp answered {json.dumps(answer)[:200]}")
        return sorted(rows, key=lambda row: int(row["index"]))

    def open(self, tokens: int) -> None:
        """Make sure that it is loaded with a micro-batch of at least `tokens`."""
        if tokens <= self._batch_tokens:
            return
        self.close()  # free the old instance before loading the next
        self._batch_tokens = max(SMALLEST_BATCH, 1 << (tokens - 1).bit_length())
        folder = tempfile.mkdtemp(prefix="nestling-")
        self._socket, self._tidy = f"{folder}/llama.sock", weakref.finalize(self, shutil.rmtree, folder, True)  # noqa: FBT003 - no errors: the folder may be gone
        try:
            self._server = xllamacpp.Server(self._params())
        except RuntimeError as error:
            self.close()
            raise EngineError(f"{self._path}: llama.cpp does not load this file ({error})") from error

    def _params(self) -> Any:  # noqa: ANN401 - xllamacpp has no types
        params = xllamacpp.CommonParams()
        params.model.path = _utf8(self._path)
        params.embedding, params.embd_normalize = True, -1
        params.pooling_type = xllamacpp.llama_pooling_type(self._pooling)
        if self._adapter:
            lora = xllamacpp.CommonAdapterLoraInfo()
            lora.path, lora.scale = _utf8(self._adapter), 1.0
            params.lora_adapters = [lora]
        params.n_ctx = params.n_batch = params.n_ubatch = self._batch_tokens
        params.n_parallel, params.kv_unified = SLOTS, True
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = self._threads
        params.cpuparams.poll = params.cpuparams_batch.poll = (
            0  # idle threads sleep: 1.7 x faster on a machine with other load
        )
        params.no_extra_bufts = True  # or most weights are held twice, the copy in a layout that is slower on AVX-512
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
    """The cleanup of an instance that was never loaded."""


def _utf8(path: Path) -> str:
    """The path as UTF-8, the only encoding llama.cpp opens; EngineError when it is not."""
    try:
        return os.fsencode(path).decode("utf-8")
    except UnicodeDecodeError:
        raise EngineError(f"{path}: llama.cpp opens UTF-8 paths only; rename the file") from None

"""Stock llama.cpp through xllamacpp: proves that our files run there, and serves where memory matters more than speed.

Its traps are avoided here: it is handed token ids (its own Qwen2 tokenizer skips NFC), one unified key-value cache
(with several slots and texts of different lengths its vectors are wrong otherwise), and a micro-batch that holds the
longest text whole, because its mean pooling is wrong across micro-batches. When a text longer than the micro-batch
comes, the model is opened again with a larger one.
"""

import json
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import xllamacpp

from nestling.engine import batching
from nestling.engine.base import Shape, TokenIds
from nestling.errors import EngineError
from nestling.gguf_io import GGUFFile
from nestling.spec import Pooling
from nestling.vectors import Floats

SMALLEST_BATCH = 512
SLOTS = 16


class LlamaCppEngine:
    """A GGUF file run by llama.cpp's server code, in process."""

    name = "llamacpp"

    def __init__(self, file: GGUFFile, *, threads: int, pooling: Pooling = Pooling.MEAN) -> None:
        self._path, self._shape, self._threads, self._pooling = file.path, Shape.of(file), threads, pooling
        self._lock = threading.Lock()
        self._server: Any = None
        self._batch_tokens = 0

    def pool(self, sequences: Sequence[TokenIds]) -> Floats:
        """The final hidden states of each sequence, pooled: B sequences -> (B, D)."""
        lengths = [len(ids) for ids in sequences]
        pooled = np.empty((len(sequences), self._shape.hidden), np.float32)
        with self._lock:
            self._open(max(lengths, default=1))
            for batch in batching.plan(lengths, self._batch_tokens):
                pooled[batch] = self._embed([sequences[index].tolist() for index in batch])
        return pooled

    def close(self) -> None:
        """Give the model back."""
        with self._lock:
            self._server, self._batch_tokens = None, 0

    def _open(self, longest: int) -> None:
        if longest <= self._batch_tokens:
            return
        self._server = None  # the old one's memory goes first
        self._batch_tokens = max(SMALLEST_BATCH, 1 << (longest - 1).bit_length())
        try:
            self._server = xllamacpp.Server(self._params())
        except RuntimeError as error:
            self._batch_tokens = 0
            raise EngineError(f"{self._path}: llama.cpp does not load this file ({error})") from error

    def _params(self) -> Any:  # noqa: ANN401 - xllamacpp has no types
        params = xllamacpp.CommonParams()
        params.model.path = str(self._path)
        params.embedding, params.embd_normalize = True, -1
        params.pooling_type = xllamacpp.llama_pooling_type(self._pooling.gguf_value)
        params.n_ctx = params.n_batch = params.n_ubatch = self._batch_tokens
        params.n_parallel, params.kv_unified = SLOTS, True
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = self._threads
        params.cpuparams.poll = params.cpuparams_batch.poll = 0  # waiting threads sleep: 1.7 x faster beside other work
        params.warmup, params.verbosity = False, -1
        return params

    def _embed(self, sequences: list[list[int]]) -> Floats:
        answer = self._server.handle_embeddings({"input": sequences, "model": "nestling"})
        answer = answer if isinstance(answer, dict) else json.loads(answer)
        if "data" not in answer:
            raise EngineError(f"{self._path}: llama.cpp answered {json.dumps(answer)[:200]}")
        rows = sorted(answer["data"], key=lambda row: row["index"])
        return np.array([row["embedding"] for row in rows], np.float32)

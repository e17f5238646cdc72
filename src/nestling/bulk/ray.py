"""Shards on Ray Data: one stateful actor per engine, with Ray's streaming execution and retries.

An engine on a card asks Ray for one GPU, and sees no other.

The only module that imports ray. Every node needs nestling installed, and sees the source, the model and the job's
folder under the same names. Ray's usage reports are off. A shard that Ray retries gives
the same file.
"""

import json
import logging
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
import ray
import ray.data

from nestling.bulk.embedding import Ticked
from nestling.bulk.manifest import Finished
from nestling.bulk.plan import Shard
from nestling.bulk.worker import Setup, Worker, open_worker
from nestling.engine.names import kind_of
from nestling.errors import EngineError, NestlingError, UsageError

MOST_BLOCKS = 10_000
OBJECT_STORE_BYTES = 100 << 20
"""Object store of a Ray that is started here: only names and counts go through it."""


def run(
    setup: Setup, shards: Sequence[Shard], *, workers: int, address: str | None, ticked: Ticked
) -> Iterator[Finished]:
    """Make the shards on a cluster, or on a local Ray; yields each when it is finished."""
    _start(address, {"CPU": workers * setup.threads, "GPU": workers * _gpus(setup)})
    try:
        for row in _dataset(setup, shards, workers).iter_rows():
            one = _answer(row)
            ticked(one.rows + one.rejected, one.tokens)
            yield one
    except (ray.exceptions.RayError, ConnectionError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise EngineError(f"Ray: {reason}; run the command again to resume") from None
    finally:
        ray.shutdown()


def _gpus(setup: Setup) -> int:
    """GPUs that a worker needs, in Ray's sense of cards of any maker."""
    return int(setup.device is not None and kind_of(setup.device) != "cpu")


def _start(address: str | None, needed: Mapping[str, int]) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    try:
        if address is None:
            ray.init(
                "local",
                num_cpus=needed["CPU"],
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                **quiet,
            )
        else:
            ray.init(address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(f"ray_address={address!r}: {str(error).splitlines()[0]}", param="ray_address") from None
    there = ray.cluster_resources()  # type: ignore[no-untyped-call]
    for name, count in needed.items():
        if (have := int(there.get(name, 0))) < count:
            ray.shutdown()
            raise UsageError(f"workers: {count} {_RESOURCES[name]} needed, the cluster has {have}", param="workers")


_RESOURCES = {"CPU": "processors", "GPU": "GPUs"}


def _dataset(setup: Setup, shards: Sequence[Shard], workers: int) -> Any:  # noqa: ANN401 - ray's Dataset
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    items = [{"shard": json.dumps(asdict(shard))} for shard in shards]
    return ray.data.from_items(items, override_num_blocks=min(len(items), MOST_BLOCKS)).map_batches(
        _Actor,
        fn_constructor_args=(setup,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=setup.threads,
        num_gpus=_gpus(setup) or None,
    )


def _answer(row: dict[str, Any]) -> Finished:
    if row["failed"]:
        raise pickle.loads(row["failed"])  # noqa: S301 - written by our own actor
    return Finished(**json.loads(row["finished"]))


class _Actor:
    """One engine on a node. Errors that a retry cannot fix are returned as a result, not raised."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._worker: Worker | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """One shard, as JSON -> its outcome."""
        try:
            self._worker = self._worker or open_worker(self._setup)
            done = self._worker.make(Shard(**json.loads(str(batch["shard"][0]))))
        except (NestlingError, OSError) as error:
            return {"finished": [""], "failed": [pickle.dumps(error)]}
        return {"finished": [json.dumps(asdict(done))], "failed": [b""]}

"""Reports of shards, as workers send them to the driver."""

from typing import Any

from schemas.job import Shard, ShardReport


def report_of(shard: Shard, **changes: Any) -> ShardReport:
    """The report of a shard all of whose rows are `ok`; `changes` replace fields."""
    return ShardReport(**(_fields(shard) | changes))


def _fields(shard: Shard) -> dict[str, Any]:
    return {
        "index": shard.index,
        "committed": True,
        "ok": shard.num_rows,
        "filtered": 0,
        "failed": 0,
        "images": shard.num_rows,
        "size_bytes": 1,
        "failures": {},
        "unforeseen": {},
        "seconds": {},
        "models_loaded": (shard.model,),
        "num_loads": 0,
        "worker": "w",
        "cpu_seconds": 0.0,
        "peak_rss_bytes": 0,
    }

"""The rows of some shards of a recorded plan whose values alone show that they cannot be generated."""

from collections import Counter
from collections.abc import Container, Iterator

import numpy as np

from actors.rows.checks import CheckedBatch
from actors.rows.routing import Router
from actors.storage.stores import Stores
from jobs.in_flight import map_in_flight
from jobs.planning.plan import Plan
from jobs.planning.row_scan import FILES_AT_ONCE, checked_batches, opened_input
from schemas.job import PlannedFile, Shard

ShardCodes = dict[int, Counter[str]]
"""By the index of a shard, the number of its rows with each error_code."""


def known_failures(plan: Plan, indices: Container[int]) -> ShardCodes:
    """The rows of the shards with these indices that fail by their values alone, as the plan found them.

    Every row is checked of each input file that has such a shard, and no other file is read.
    """
    router = Router(plan.job.spec, plan.job.models)
    stores = Stores(plan.job.spec.errors.storage_deadline_s)

    def scan(file_shards: tuple[PlannedFile, list[Shard]]) -> ShardCodes:
        return _scan(plan, *file_shards, router, stores)

    codes: ShardCodes = {}
    for of_file in map_in_flight(scan, _files_with(plan, indices), at_once=FILES_AT_ONCE):
        codes |= of_file
    return codes


def _files_with(plan: Plan, indices: Container[int]) -> Iterator[tuple[PlannedFile, list[Shard]]]:
    """The files that have one of these shards, each with those that it has."""
    for file, by_model in plan.shards_by_file():
        shards = [shard for of_model in by_model.values() for shard in of_model if shard.index in indices]
        if shards:
            yield file, shards


def _scan(plan: Plan, file: PlannedFile, shards: list[Shard], router: Router, stores: Stores) -> ShardCodes:
    by_start = {(shard.model, shard.start): shard for shard in shards}
    # A repeated id is what a worker looks at last.
    codes = {shard.index: Counter({"duplicate_row_id": len(shard.repeated)}) for shard in shards}
    num_before: Counter[str] = Counter()
    with opened_input(file.uri, plan.rows_uri(file), plan.job, stores) as opened:
        for checked_batch in checked_batches(opened, file.uri, plan.job, router):
            for model, number, code in _problems(checked_batch, num_before):
                if shard := by_start.get((model, number - number % plan.shard_rows)):
                    codes[shard.index][code] += 1
                    codes[shard.index]["duplicate_row_id"] -= number - shard.start in shard.repeated
    return codes


def _problems(checked_batch: CheckedBatch, num_before: Counter[str]) -> Iterator[tuple[str, int, str]]:
    """(model, row, error_code) of each bad row; rows are numbered among the file's rows of their model.

    `num_before`: the rows of each model in the batches before. Those of this batch are added.
    """
    models = np.array([route.model for route in checked_batch.routes])[checked_batch.route_positions]
    for model in np.unique(models).tolist():
        of_model = models == model
        numbers = num_before[model] + np.cumsum(of_model) - 1
        for position, problem in checked_batch.problems.items():
            if of_model[position]:
                yield model, int(numbers[position]), problem.code
        num_before[model] += int(of_model.sum())

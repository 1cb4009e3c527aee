"""The plan: every row routed and checked, and the output cut into shards, before anything is paid for."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from actors.images.encoding import TYPICAL_BYTES_PER_PIXEL
from actors.storage.stores import Stores
from jobs.planning.row_ids import find_repeated
from jobs.planning.row_scan import MAX_EXAMPLES, Findings, Report, gather
from jobs.planning.survey import Survey
from schemas.job import NO_MODEL, Job, PlannedFile, Shard


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A job cut into shards. One line per input file is all it keeps: shards are a formula."""

    job: Job
    files: tuple[PlannedFile, ...]

    @property
    def num_rows(self) -> int:
        """Rows of the whole input."""
        return sum(file.num_rows for file in self.files)

    @property
    def file_names(self) -> dict[str, str]:
        """By URI, what a file's rows are named after where they have no ids: its name, or, where files share
        theirs, the path below the folder that holds them all, wherever that is."""
        paths = [file.uri.split("/") for file in self.files]
        folder = 0
        if len({path[-1] for path in paths}) < len(paths):
            folder = next(i for i, names in enumerate(zip(*paths, strict=False)) if len({*names}) > 1)
        return {
            file.uri: "/".join(path[folder or -1 :]) for file, path in zip(self.files, paths, strict=True)
        }

    @property
    def num_shards(self) -> int:
        """Parts of the whole output."""
        return sum(self._shards_in(rows) for file in self.files for rows in file.rows_by_model.values())

    def num_shards_of(self, model: str) -> int:
        """Parts that a model makes."""
        return sum(self._shards_in(file.rows_by_model.get(model, 0)) for file in self.files)

    def shards(self) -> Iterator[Shard]:
        """Every shard, in the order of the parts' names."""
        num_shards = self.num_shards
        names = self.file_names
        index = 0
        for file in self.files:
            for model in [*self.job.models, NO_MODEL]:
                rows, repeated = file.rows_by_model.get(model, 0), file.repeated.get(model, ())
                for start in range(0, rows, self._shard_rows):
                    stop = min(start + self._shard_rows, rows)
                    yield Shard(
                        index=index,
                        num_shards=num_shards,
                        uri=file.uri,
                        file_name=names[file.uri],
                        etag=file.etag,
                        model=model,
                        start=start,
                        stop=stop,
                        repeated=tuple(row - start for row in _between(repeated, start, stop)),
                    )
                    index += 1

    @property
    def _shard_rows(self) -> int:
        return self.job.spec.batching.shard_rows

    def _shards_in(self, rows: int) -> int:
        return -(-rows // self._shard_rows)


def _between(ordered: Sequence[int], start: int, stop: int) -> Sequence[int]:
    return ordered[bisect_left(ordered, start) : bisect_left(ordered, stop)]


def make_plan(
    survey: Survey, report: Report = lambda rows: None, max_examples: int = MAX_EXAMPLES
) -> tuple[Plan, Findings]:
    """Route and check every row; reads the columns that this needs and nothing else."""
    job, stores = survey.job, Stores(survey.job.spec.errors.storage_deadline_s)
    gathered = gather(survey, stores, report, max_examples)
    if gathered.keys:
        repeated = find_repeated(gathered.keys, survey.files, job.columns, stores)
        if repeated:
            # Rare, and simpler than to take these rows out of what is counted already.
            gathered = gather(survey, stores, lambda rows: None, max_examples, repeated)
    return Plan(job=job, files=tuple(gathered.files)), gathered.findings()


def expected_bytes(findings: Findings, job: Job) -> int:
    """A guess at the output's size, from its pixels."""
    pixels = sum(count.pixels for count in findings.counts)
    return int(pixels * TYPICAL_BYTES_PER_PIXEL[job.spec.output.format])

"""The plan: every row routed and checked, and the output cut into shards, before anything is paid for."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from actors.images.encoding import TYPICAL_BYTES_PER_PIXEL
from actors.storage.stores import Stores
from jobs.planning.prompt_signs import count_signs
from jobs.planning.row_ids import find_repeated
from jobs.planning.row_keys import RowKeys
from jobs.planning.row_scan import MAX_EXAMPLES, Findings, ReportProgress, scan_files
from jobs.survey.survey import Survey
from schemas.job import NO_MODEL, Job, PlannedFile, Shard


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A job cut into shards. It keeps only one line per input file, from which shards are computed."""

    job: Job
    files: tuple[PlannedFile, ...]

    @property
    def num_rows(self) -> int:
        """The number of rows in the whole input."""
        return sum(file.num_rows for file in self.files)

    @property
    def file_names(self) -> dict[str, str]:
        """By URI, the name with which the ids of a file's rows begin if the input has no ids.

        It is the file's name. If several files have one name, it is the path below the folder that all files
        have in common, wherever that folder is.
        """
        paths = [file.uri.split("/") for file in self.files]
        folder = 0
        if len({path[-1] for path in paths}) < len(paths):
            folder = next(i for i, names in enumerate(zip(*paths, strict=False)) if len({*names}) > 1)
        return {
            file.uri: "/".join(path[folder or -1 :]) for file, path in zip(self.files, paths, strict=True)
        }

    @property
    def num_shards(self) -> int:
        """The number of parts in the whole output."""
        return sum(self._num_shards_for(rows) for file in self.files for rows in file.rows_by_model.values())

    def num_shards_of(self, model: str) -> int:
        """The number of parts of one model."""
        return sum(self._num_shards_for(file.rows_by_model.get(model, 0)) for file in self.files)

    def shards(self) -> Iterator[Shard]:
        """Every shard, in the order of the parts' names."""
        for _, by_model in self.shards_by_file():
            for shards in by_model.values():
                yield from shards

    def shards_of(self, model: str) -> Iterator[Shard]:
        """The shards of one model, in the same order."""
        for _, by_model in self.shards_by_file():
            yield from by_model[model]

    def shards_by_file(self) -> Iterator[tuple[PlannedFile, dict[str, Iterator[Shard]]]]:
        """Each input file with its shards by model, in the same order. Models without any are there too."""
        names, num_shards = self.file_names, self.num_shards
        index = 0
        for file in self.files:
            by_model = {}
            for model in [*self.job.models, NO_MODEL]:
                by_model[model] = self._shards_in(file, model, index, num_shards, names[file.uri])
                index += self._num_shards_for(file.rows_by_model.get(model, 0))
            yield file, by_model

    def _shards_in(
        self, file: PlannedFile, model: str, index: int, num_shards: int, file_name: str
    ) -> Iterator[Shard]:
        """A file's shards of one model, of which the first has this index."""
        rows, repeated = file.rows_by_model.get(model, 0), file.repeated.get(model, ())
        for i, start in enumerate(range(0, rows, self._shard_rows)):
            stop = min(start + self._shard_rows, rows)
            yield Shard(
                index=index + i,
                num_shards=num_shards,
                uri=file.uri,
                file_name=file_name,
                etag=file.etag,
                model=model,
                start=start,
                stop=stop,
                repeated=tuple(row - start for row in _between(repeated, start, stop)),
            )

    @property
    def _shard_rows(self) -> int:
        return self.job.spec.batching.shard_rows

    def _num_shards_for(self, rows: int) -> int:
        return -(-rows // self._shard_rows)


def _between(ordered: Sequence[int], start: int, stop: int) -> Sequence[int]:
    """The numbers from `start` up to, and without, `stop`."""
    return ordered[bisect_left(ordered, start) : bisect_left(ordered, stop)]


def make_plan(
    survey: Survey, report: ReportProgress = lambda rows: None, max_examples: int = MAX_EXAMPLES
) -> tuple[Plan, Findings]:
    """The plan, and what its pass over all rows found. Only the columns that this needs are read, and the
    first texts of a few files.

    Some of the images that rows name by URI are fetched, to see whether they can be read.
    """
    job, stores = survey.job, Stores(survey.job.spec.errors.storage_deadline_s)
    with RowKeys(survey.num_rows if "row_id" in job.columns.fields else 0) as row_keys:
        totals = scan_files(survey, stores, report, max_examples, {}, row_keys)
        repeated = find_repeated(row_keys, survey.files, job.columns, stores)
    if repeated:
        # A second scan is rare, and simpler than to subtract these rows from the counts.
        totals = scan_files(survey, stores, lambda rows: None, max_examples, repeated)
    findings = replace(
        totals.findings(),
        ids_problem=row_keys.problem,
        looked_at=totals.pictures.look(job.spec.input.pictures, stores),
        prompt_signs=count_signs(survey, stores),
    )
    return Plan(job=job, files=tuple(totals.files)), findings


def expected_bytes(findings: Findings, job: Job) -> int:
    """An estimate of the output's size in bytes, from the number of its pixels."""
    pixels = sum(count.pixels for count in findings.counts)
    return int(pixels * TYPICAL_BYTES_PER_PIXEL[job.spec.output.format])

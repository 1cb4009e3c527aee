"""The plan: every row routed and checked, and the output cut into shards, before anything is paid for."""

from array import array
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import NamedTuple

from actors.images.encoding import TYPICAL_BYTES_PER_PIXEL, TYPICAL_DEPTH_BYTES_PER_PIXEL
from actors.storage.stores import Stores
from actors.storage.uris import join, normalise
from jobs.planning.prompt_signs import count_signs
from jobs.planning.row_ids import find_repeated
from jobs.planning.row_keys import RowKeys
from jobs.planning.row_scan import (
    MAX_EXAMPLES,
    Findings,
    ReportProgress,
    RouteCount,
    add_keys,
    scan_files,
)
from jobs.survey.survey import Survey, SurveyedFile
from schemas.job import NO_MODEL, Job, PlannedFile, Shard
from schemas.output_layout import ShardNames


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A job cut into shards. It keeps only one line per input file, from which shards are computed."""

    job: Job
    files: tuple[PlannedFile, ...]
    first_uris: tuple[str, ...] = ()
    """Where the files were when they were recorded, which names rows; empty: where they are."""
    nums_of_files: tuple[int, ...] = ()
    """How many files the job began with, and how many each extension has added; empty: no extension."""

    @property
    def num_rows(self) -> int:
        """The number of rows in the whole input."""
        return sum(file.num_rows for file in self.files)

    @property
    def file_names(self) -> dict[str, str]:
        """By URI, the name with which the ids of a file's rows begin if the input has no ids.

        It is the file's name. If several files have one name, it is the path below the folder that all files
        have in common, wherever that folder is. A folder that is renamed later does not rename the rows, nor
        does an extension: if one of its names is taken, all of them get `x0001/` before them.
        """
        uris = self.first_uris or [file.uri for file in self.files]
        names: dict[str, None] = {}
        for extension, (first, end) in enumerate(pairwise(self._firsts())):
            added = _names_of(uris[first:end])
            while not names.keys().isdisjoint(added):
                added = [f"x{extension:04d}/{name}" for name in added]
            names |= dict.fromkeys(added)
        return {file.uri: name for file, name in zip(self.files, names, strict=True)}

    @property
    def shard_names(self) -> ShardNames:
        """The names of all shards."""
        bounds = pairwise(self._firsts())
        return ShardNames([sum(map(self.num_shards_in, self.files[first:end])) for first, end in bounds])

    def _firsts(self) -> list[int]:
        """The position of the first file of the job and of each extension, and the number of all files."""
        return [*accumulate(self.nums_of_files or [len(self.files)], initial=0)]

    @property
    def num_shards(self) -> int:
        """The number of parts in the whole output."""
        return sum(map(self.num_shards_in, self.files))

    def num_shards_of(self, model: str) -> int:
        """The number of parts of one model."""
        return sum(self._num_shards_for(file.rows_by_model.get(model, 0)) for file in self.files)

    def shards(self) -> Iterator[Shard]:
        """Every shard, in the order of the parts' names."""
        return map(ShardFinder(self).shard_at, range(self.num_shards))

    def shards_by_file(self) -> Iterator[tuple[PlannedFile, dict[str, Iterator[Shard]]]]:
        """Each input file with its shards by model, in the same order. Models without any are there too."""
        finder, index = ShardFinder(self), 0
        for file in self.files:
            by_model: dict[str, Iterator[Shard]] = {}
            for model in (*self.job.models, NO_MODEL):
                end = index + self._num_shards_for(file.rows_by_model.get(model, 0))
                by_model[model] = map(finder.shard_at, range(index, end))
                index = end
            yield file, by_model

    def rows_uri(self, file: PlannedFile) -> str:
        """The URI of the Parquet file with the rows of a file: its copy in the output, or the file itself."""
        return join(normalise(self.job.spec.output.path), file.copy) if file.copy else file.uri

    @property
    def shard_rows(self) -> int:
        """The number of rows of a shard that is not its file's last."""
        return self.job.spec.batching.shard_rows

    def num_shards_in(self, file: PlannedFile) -> int:
        """The number of parts of one file."""
        return sum(map(self._num_shards_for, file.rows_by_model.values()))

    def _num_shards_for(self, rows: int) -> int:
        return -(-rows // self.shard_rows)


class ShardFinder:
    """Finds the shards of a plan by their indices. It keeps one number and one name for each file."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._models = (*plan.job.models, NO_MODEL)
        """The models in the order of their shards in each file."""
        self._names = plan.shard_names
        self._file_names = plan.file_names
        self._firsts = array("Q", accumulate(map(plan.num_shards_in, plan.files), initial=0))
        """The index of each file's first shard, and the number of all shards."""

    def shard_at(self, index: int) -> Shard:
        """The shard with this index, which must be less than the number of shards."""
        number = bisect_right(self._firsts, index) - 1
        file, shard_rows = self._plan.files[number], self._plan.shard_rows
        start = (index - self._firsts[number]) * shard_rows
        for model in self._models:
            rows = file.rows_by_model.get(model, 0)
            if start < rows:
                break
            start -= -(-rows // shard_rows) * shard_rows
        stop = min(start + shard_rows, rows)
        repeated = _between(file.repeated.get(model, ()), start, stop)
        return Shard(
            index=index,
            name=self._names.name(index),
            uri=file.uri,
            file_name=self._file_names[file.uri],
            etag=file.etag,
            sha256=file.sha256,
            copy=self._plan.rows_uri(file) if file.copy else "",
            model=model,
            start=start,
            stop=stop,
            repeated=tuple(row - start for row in repeated),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenShards:
    """Some shards of one model. Only their indices are in memory."""

    indices: "array[int]"
    finder: ShardFinder
    again: tuple[str, ...] | None
    """That of each shard."""

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int, /) -> Shard:
        return replace(self.finder.shard_at(self.indices[position]), again=self.again)


def chosen_shards(
    plan: Plan, is_chosen: Callable[[Shard], bool], again: tuple[str, ...] | None = None
) -> dict[str, ChosenShards]:
    """The chosen shards by model, with this `again`; models without any are absent."""
    finder = ShardFinder(plan)
    indices: defaultdict[str, array[int]] = defaultdict(lambda: array("Q"))
    for shard in filter(is_chosen, plan.shards()):
        indices[shard.model].append(shard.index)
    return {
        model: ChosenShards(indices=of_model, finder=finder, again=again)
        for model, of_model in indices.items()
    }


def _names_of(uris: Sequence[str]) -> list[str]:
    """The names of files that come to a job together, by which rows without ids are named."""
    paths = [uri.split("/") for uri in uris]
    folder = 0
    if len({path[-1] for path in paths}) < len(paths):
        folder = next(i for i, names in enumerate(zip(*paths, strict=False)) if len({*names}) > 1)
    return ["/".join(path[folder or -1 :]) for path in paths]


def _between(ordered: Sequence[int], start: int, stop: int) -> Sequence[int]:
    """The numbers from `start` up to, and without, `stop`."""
    return ordered[bisect_left(ordered, start) : bisect_left(ordered, stop)]


def make_plan(
    survey: Survey,
    report: ReportProgress = lambda rows: None,
    max_examples: int = MAX_EXAMPLES,
    earlier: Sequence[SurveyedFile] = (),
) -> tuple[Plan, Findings]:
    """The plan, and what its pass over all rows found. Only the columns that this needs are read, and the
    first texts of a few files.

    Some of the images that rows name by URI are fetched, to see whether they can be read. `earlier`: the
    files that the job has already; only their ids are read, because no row may have one of these again.
    """
    job, stores = survey.job, Stores(survey.job.spec.errors.storage_deadline_s)
    num_rows = survey.num_rows + sum(file.num_rows for file in earlier)
    with RowKeys(num_rows if "row_id" in job.columns.fields else 0) as row_keys:
        if earlier:
            add_keys(row_keys, earlier, job, stores)
        totals = scan_files(survey, stores, report, max_examples, {}, row_keys)
        repeated = find_repeated(row_keys, [*earlier, *survey.files], job.columns, stores)
    if any(file.stored.uri in repeated for file in survey.files):
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
    """An estimate of the output's size in bytes, from the number of its pixels. Kept columns do not count."""
    return int(sum(_image_bytes(count, job) for count in findings.counts))


def _image_bytes(count: RouteCount, job: Job) -> float:
    """An estimate of the size in bytes of all images of these rows."""
    of_images = count.pixels * TYPICAL_BYTES_PER_PIXEL[job.spec.output.format]
    return of_images + count.depth_pixels * TYPICAL_DEPTH_BYTES_PER_PIXEL


class LargestPart(NamedTuple):
    """An estimate of the part that has the most bytes."""

    rows: int
    size_bytes: int


def largest_part(findings: Findings, job: Job) -> LargestPart:
    """The part that has the rows with the largest images, if they are neighbours, of any one model.

    Its size is 0 if images are objects of their own.
    """
    largest = LargestPart(0, 0)
    if job.spec.output.images == "files":
        return largest
    for model in {count.model for count in findings.counts}:
        counts = [count for count in findings.counts if count.model == model and count.rows]
        num_rows, size_bytes = 0, 0.0
        for count in sorted(counts, key=lambda count: -_image_bytes(count, job) / count.rows):
            taken = min(count.rows, job.spec.batching.shard_rows - num_rows)
            num_rows += taken
            size_bytes += _image_bytes(count, job) * taken / count.rows
        largest = max(largest, LargestPart(num_rows, int(size_bytes)), key=lambda part: part.size_bytes)
    return largest

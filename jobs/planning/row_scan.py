"""The pass over all rows of the input: which route each row takes, and which rows cannot be generated."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actors.images.image_uris import UriJudge
from actors.inputs.input_file import InputFile, RowBatch
from actors.rows.adapters.adapter_kinds import AdapterName, rows_with_adapters
from actors.rows.adapters.ip_adapter_checks import num_idle_pictures
from actors.rows.checks import CheckedBatch, check_batch
from actors.rows.denoising import StepWork, add_works, is_guided, num_steps, step_parameters, works_of
from actors.rows.routing import ResolvedRoute, Router
from actors.rows.scheduler_checks import sampler_names
from actors.rows.step_sizes import Parameters, Size, result_size, result_sizes
from actors.storage.stores import Stores
from jobs.in_flight import map_in_flight
from jobs.planning.picture_sample import LookedAt, PictureSample
from jobs.planning.prompt_signs import NO_SIGNS, PromptSigns
from jobs.planning.row_ids import Repeated, id_keys
from jobs.planning.row_keys import RowKeys
from jobs.survey.survey import Survey, SurveyedFile
from schemas.errors import RowError, SpecError
from schemas.job import Job, PlannedFile
from schemas.systems.model_card import ModelCard
from schemas.wording.amounts import counted

FILES_AT_ONCE = 4
"""Input files that are read at the same time."""
MAX_EXAMPLES = 20
"""The rows that a plan names for each error code, unless it is asked for another number."""
INPUT = "input"
"""What the text of a size has where the input image decides."""
Numbers = npt.NDArray[np.float64]
ReportProgress = Callable[[int], None]
"""A function that is called with the number of rows that have just been checked."""


class StepSize(NamedTuple):
    """A step of a route: what makes its images, and how large they are."""

    route: str
    model: str
    size: str
    """`512x512`, or `input` where the input image decides, or `4 x input`."""


_CountKey = tuple[StepSize, ...]
"""The steps of a route: the rows that have these in common are counted together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A row that cannot be generated, as the plan names it."""

    uri: str
    row: int
    """The row's number in the file, from 0."""
    location: str
    """Where the row is in the file, for a message: its line in a text file, else its number."""
    row_id: str
    """The row's id; empty where the input has no ids."""
    problem: RowError


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteCount:
    """The number of rows with the same route, model and size, and of their images."""

    route: str
    model: str
    size: str
    """The size of the first step's images: `512x512`, or `input` where the input image decides."""
    rows: int
    images: int
    pixels: int
    """The pixels of all images that are stored, those of kept steps too. Where the input decides, the first
    step's images count as if they had the model's own size."""
    depth_pixels: int = 0
    """The pixels of all depth maps that are stored."""
    then: tuple[StepSize, ...] = ()
    """The later steps of a chain."""
    work: tuple[StepWork, ...] = ()
    """What each step has to do, the first one's before those of `then`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What the pass over all rows found."""

    counts: tuple[RouteCount, ...]
    bad_rows: tuple[BadRow, ...]
    """The first rows of each error code."""
    num_bad: dict[str, int]
    """The number of rows that cannot be generated, by error code."""
    looked_at: LookedAt = field(default_factory=LookedAt)
    """What came of a look at some of the images that rows name by URI."""
    contradictions: tuple[str, ...] = ()
    """A line for each column that contradicts the name of a folder, with the first file where it does."""
    samplers: tuple[str, ...] = ()
    """The names in the rows' `scheduler` that are read as a class of another name."""
    adapter_rows: Mapping[AdapterName, int] = field(default_factory=dict)
    """The number of rows to which each adapter is applied; one that no row applies is absent."""
    num_idle_pictures: int = 0
    """The number of rows with a picture that no IP-Adapter shows."""
    prompt_signs: PromptSigns = NO_SIGNS
    """The signs of other tools in the prompts of some of the rows."""
    ids_problem: str = ""
    """Why the rows' ids could not be compared; empty if they were, or the input has none."""


class _FileScan:
    """The counts of one file's rows."""

    def __init__(self, file: SurveyedFile, known_repeated: Repeated, max_examples: int) -> None:
        """`known_repeated`: the rows of the file that have an earlier row's id, where they are known."""
        self.file = file
        self._known_repeated = known_repeated
        self._max_examples = max_examples
        self.rows_by_model: Counter[str] = Counter()
        self.repeated: dict[str, list[int]] = {}
        """By model: the rows with an earlier row's id, numbered among this file's rows of the model."""
        self.rows: Counter[_CountKey] = Counter()
        self.images: Counter[_CountKey] = Counter()
        self.pixels: Counter[_CountKey] = Counter()
        self.depth_pixels: Counter[_CountKey] = Counter()
        self.work: dict[_CountKey, tuple[StepWork, ...]] = {}
        self.num_bad: Counter[str] = Counter()
        self.adapter_rows: Counter[AdapterName] = Counter()
        self.num_idle_pictures = 0
        self.samplers: set[str] = set()
        self.examples: list[tuple[int, RowError]] = []
        """(row number, problem) of the rows that the plan may name."""
        self.bad_rows: list[BadRow] = []
        self.pictures = PictureSample()
        self.contradictions: Mapping[str, str] = {}
        """By column, how it contradicts the name of the file's folder."""

    def planned_file(self) -> PlannedFile:
        """The file's entry in the plan."""
        return PlannedFile(
            uri=self.file.stored.uri,
            size_bytes=self.file.stored.size_bytes,
            etag=self.file.stored.etag,
            copy=self.file.copy.name if self.file.copy else "",
            num_rows=self.file.num_rows,
            rows_by_model=dict(sorted(self.rows_by_model.items())),
            repeated=self.repeated,
        )

    def add(self, checked_batch: CheckedBatch, job: Job) -> None:
        """Count the rows of a batch."""
        checked_batch = self._with_repeated(checked_batch)
        self.samplers |= sampler_names(checked_batch.batch)
        for row, problem in checked_batch.problems.items():
            self.num_bad[problem.code] += 1
            if self.num_bad[problem.code] <= self._max_examples:
                self.examples.append((checked_batch.batch.first_row + row, problem))
        self.pictures.add(checked_batch, self.file.stored.uri)
        fit = np.ones(checked_batch.batch.num_rows, dtype=bool)
        fit[list(checked_batch.problems)] = False
        for position, route in enumerate(checked_batch.routes):
            on_route = checked_batch.route_positions == position
            self.rows_by_model[route.model] += int(on_route.sum())
            if isinstance(route, ResolvedRoute):
                selected = on_route & fit
                self._count(checked_batch.batch, route, selected, job)
                self.adapter_rows.update(rows_with_adapters(checked_batch.batch, route, selected))
                self.num_idle_pictures += num_idle_pictures(checked_batch.batch, route, selected)

    def _with_repeated(self, checked_batch: CheckedBatch) -> CheckedBatch:
        """The batch with a problem for each row that has an earlier row's id."""
        repeated = self._known_repeated
        if not repeated:
            return checked_batch
        first_row, problems = checked_batch.batch.first_row, dict(checked_batch.problems)
        for row in sorted(row for row in repeated if 0 <= row - first_row < checked_batch.batch.num_rows):
            position = row - first_row
            problem = RowError("duplicate_row_id", f"{repeated[row]} has the same id")
            problems.setdefault(position, problem)
            model = checked_batch.routes[checked_batch.route_positions[position]].model
            same_model = [i for i, route in enumerate(checked_batch.routes) if route.model == model]
            num_before = int(np.isin(checked_batch.route_positions[:position], same_model).sum())
            self.repeated.setdefault(model, []).append(self.rows_by_model[model] + num_before)
        return replace(checked_batch, problems=problems)

    def _count(
        self, batch: RowBatch, route: ResolvedRoute, selected: npt.NDArray[np.bool_], job: Job
    ) -> None:
        """Count the selected rows of the batch, all of which have this route."""
        images = _numbers(batch, "num_images_per_prompt", 1)[selected]
        card = job.models[route.model]
        heights, widths = (_sides(batch, route, side)[selected] for side in ("height", "width"))
        asked = {name: each[selected] for name, each in step_parameters(batch, route).items()}
        steps = images * num_steps(asked)
        sizes, size_positions = np.unique(np.stack([heights, widths]), axis=1, return_inverse=True)
        image_steps = np.bincount(size_positions, steps, sizes.shape[1])
        guided_steps = np.bincount(size_positions, steps * is_guided(asked), sizes.shape[1])
        rows_by_size = np.bincount(size_positions, minlength=sizes.shape[1]).tolist()
        images_by_size = np.bincount(size_positions, images, sizes.shape[1]).astype(int).tolist()
        for position, ((height, width), num_rows, num_images) in enumerate(
            zip(sizes.T.astype(int).tolist(), rows_by_size, images_by_size, strict=True)
        ):
            own = {**route.defaults, "height": height or None, "width": width or None}
            sizes_of_steps, key = _steps(route, own, card)
            self.rows[key] += num_rows
            self.images[key] += num_images
            stored = sizes_of_steps if route.keep_steps else sizes_of_steps[-1:]
            self.pixels[key] += num_images * sum(map(_pixels, stored))
            first_steps = image_steps[position], guided_steps[position]
            works = works_of(route, sizes_of_steps, num_images, first_steps)
            self.work[key] = add_works(self.work.get(key, ()), works)
            if route.steps[-1].system.gives_depth:
                self.depth_pixels[key] += num_images * _pixels(sizes_of_steps[-1])


def scan_files(
    survey: Survey,
    stores: Stores,
    report: ReportProgress,
    max_examples: int,
    repeated: Mapping[str, Repeated],
    row_keys: RowKeys | None = None,
) -> "ScanTotals":
    """The counts of all files' rows.

    `repeated`: the rows that are known to have an earlier row's id, by the URI of their file.
    `row_keys`: gets the keys of the ids, with which such rows are found.
    """
    job = survey.job
    router = Router(job.spec, job.models)
    totals = ScanTotals(max_examples)

    def scan_file(file: SurveyedFile) -> _FileScan:
        scan = _FileScan(file, repeated.get(file.stored.uri, {}), max_examples)
        _scan(scan, job, router, stores, report, row_keys)
        return scan

    for scan in map_in_flight(scan_file, survey.files, at_once=FILES_AT_ONCE):
        totals.add(scan)
    return totals


def add_keys(row_keys: RowKeys, files: Iterable[SurveyedFile], job: Job, stores: Stores) -> None:
    """Add the keys of the ids, if the input has ids, of files of which nothing else is read."""

    def add(file: SurveyedFile) -> None:
        with opened_input(file.stored.uri, file.rows_uri, job, stores) as opened:
            for keys in id_keys(opened):
                row_keys.add(keys)

    if "row_id" in job.columns.fields:
        deque(map_in_flight(add, (file for file in files if file.num_rows), at_once=FILES_AT_ONCE), maxlen=0)


def _scan(
    scan: _FileScan, job: Job, router: Router, stores: Stores, report: ReportProgress, keys: RowKeys | None
) -> None:
    uri = scan.file.stored.uri
    if not scan.file.num_rows:  # Such a file may lack columns that all others have.
        return
    with opened_input(uri, scan.file.rows_uri, job, stores) as opened:
        _check_ids(opened, uri, job)
        scan.contradictions = opened.contradictions()
        if keys and "row_id" in job.columns.fields:
            for of_batch in id_keys(opened):
                keys.add(of_batch)
        for checked_batch in checked_batches(opened, uri, job, router):
            scan.add(checked_batch, job)
            report(checked_batch.batch.num_rows)
        _name_examples(scan, opened)
        scan.pictures.locate(opened)


@contextmanager
def opened_input(uri: str, rows_uri: str, job: Job, stores: Stores) -> Iterator[InputFile]:
    """The opened file of the input; SpecError where it cannot be read to its end.

    `rows_uri`: that of the Parquet file with its rows, which may be a copy.
    """
    try:
        with InputFile(stores.of(rows_uri).open(rows_uri), job.columns, uri) as opened:
            yield opened
    # Any other ValueError would be a mistake of the checks, and not of the file.
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise SpecError(f"input.path: {uri} cannot be read to its end: {error}") from error


def checked_batches(opened: InputFile, uri: str, job: Job, router: Router) -> Iterator[CheckedBatch]:
    """All rows of an opened file of the input, checked."""
    judge = UriJudge(uri, job.spec.input.pictures)
    # What else the plan needs of texts, the workers check.
    has_learned_tokens = any(card.embeddings for card in job.models.values())
    for batch in opened.read_for_checks(with_texts=has_learned_tokens):
        yield check_batch(batch, router, job.models, judge)


class ScanTotals:
    """The sums of all files' counts. Of each file, only its entry in the plan is kept besides."""

    def __init__(self, max_examples: int) -> None:
        self._max_examples = max_examples
        self.files: list[PlannedFile] = []
        self._rows: Counter[_CountKey] = Counter()
        self._images: Counter[_CountKey] = Counter()
        self._pixels: Counter[_CountKey] = Counter()
        self._depth_pixels: Counter[_CountKey] = Counter()
        self._work: dict[_CountKey, tuple[StepWork, ...]] = {}
        self._num_bad: Counter[str] = Counter()
        self._adapter_rows: Counter[AdapterName] = Counter()
        self._num_idle_pictures = 0
        self._samplers: set[str] = set()
        self._bad_rows: dict[str, list[BadRow]] = {}
        self._contradictions: dict[str, str] = {}
        self.pictures = PictureSample()
        """Some of the images that rows name by URI."""

    def add(self, scan: _FileScan) -> None:
        """Add a file's counts."""
        self.files.append(scan.planned_file())
        self._rows += scan.rows
        self._images += scan.images
        self._pixels += scan.pixels
        self._depth_pixels += scan.depth_pixels
        for key, work in scan.work.items():
            self._work[key] = add_works(self._work.get(key, ()), work)
        self._num_bad += scan.num_bad
        self._adapter_rows += scan.adapter_rows
        self._num_idle_pictures += scan.num_idle_pictures
        self.pictures.merge(scan.pictures)
        for column, text in scan.contradictions.items():
            self._contradictions.setdefault(column, f"column `{column}` of {scan.file.stored.uri}: {text}")
        self._samplers |= scan.samplers
        for bad in scan.bad_rows:
            examples = self._bad_rows.setdefault(bad.problem.code, [])
            if len(examples) < self._max_examples:
                examples.append(bad)

    def findings(self) -> Findings:
        """The sums. Counts are sorted by route, model and size, and bad rows by error code."""
        counts = [
            RouteCount(
                **first._asdict(),
                rows=self._rows[first, *then],
                images=self._images[first, *then],
                pixels=self._pixels[first, *then],
                depth_pixels=self._depth_pixels[first, *then],
                then=tuple(then),
                work=self._work[first, *then],
            )
            for first, *then in sorted(self._rows)
        ]
        bad_rows = [bad for code in sorted(self._bad_rows) for bad in self._bad_rows[code]]
        num_bad = dict(sorted(self._num_bad.items()))
        return Findings(
            counts=tuple(counts),
            bad_rows=tuple(bad_rows),
            num_bad=num_bad,
            contradictions=tuple(self._contradictions.values()),
            samplers=tuple(sorted(self._samplers)),
            adapter_rows=dict(self._adapter_rows),
            num_idle_pictures=self._num_idle_pictures,
        )


def _check_ids(opened: InputFile, uri: str, job: Job) -> None:
    if "row_id" in job.columns.fields:
        num_nulls = opened.num_nulls("row_id")
        if num_nulls:
            column = job.columns.fields["row_id"]
            first = opened.first_without_id()
            raise SpecError(
                f"column `{column}` has {counted(num_nulls, 'null')} in {uri} ({first} is the first); every "
                "row needs its id, or leave the column out: rows are then named after their file and number"
            )


def _name_examples(scan: _FileScan, opened: InputFile) -> None:
    """Read the ids and the locations of the scan's examples, and make them its bad rows."""
    rows = [row for row, _ in scan.examples]
    scan.bad_rows = [
        BadRow(uri=scan.file.stored.uri, row=row, location=location, row_id=row_id, problem=problem)
        for (row, problem), location, row_id in zip(
            scan.examples, opened.locations(rows), opened.row_ids(rows), strict=True
        )
    ]


def _steps(route: ResolvedRoute, own: Parameters, card: ModelCard) -> tuple[list[Size], _CountKey]:
    """The sizes of all steps' images, and the steps as the plan shows them; `own`: the first's parameters."""
    # A model's own size is that of its results.
    given = (card.height / route.system.scale, card.width / route.system.scale)
    sizes = result_sizes(route, result_size(route.system, own, given))
    # NaN is left where the input decides.
    known = result_sizes(route, result_size(route.system, own, (np.nan, np.nan)))
    labels = (_size_text(*each, given) for each in zip(sizes, known, strict=True))
    steps = zip(route.steps, labels, strict=True)
    return sizes, tuple(StepSize(step.name, step.model, label) for step, label in steps)


def _size_text(size: Size, known: Size, given: tuple[float, float]) -> str:
    grown = [
        side / of_input for side, fixed, of_input in zip(size, known, given, strict=True) if np.isnan(fixed)
    ]
    if not grown:
        return f"{size[1]:.0f}x{size[0]:.0f}"
    return INPUT if grown[0] == 1 else f"{grown[0]:g} x {INPUT}"


def _pixels(size: Size) -> int:
    return int(size[0] * size[1])


def _sides(batch: RowBatch, route: ResolvedRoute, side: str) -> Numbers:
    """Each row's height or width; 0 where the input image decides."""
    if side not in route.defaults:
        return np.zeros(batch.num_rows)
    return _numbers(batch, side, route.defaults[side] or 0)


def _numbers(batch: RowBatch, name: str, default: object) -> Numbers:
    """Each row's number in the field `name`, or the default where the row has none."""
    column = batch.fields.get(name)
    if column is None:
        return np.full(batch.num_rows, default, dtype=np.float64)
    values: Numbers = column.cast(pa.float64(), safe=False).fill_null(default).to_numpy(zero_copy_only=False)
    return values

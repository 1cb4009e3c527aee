"""What a pass over the input's rows finds: where they go, and which cannot be made."""

from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actors.inputs.input_file import InputFile, RowBatch
from actors.rows.checks import CheckedBatch, check_batch
from actors.rows.routing import ResolvedRoute, Router
from actors.storage.stores import Stores
from jobs.planning.row_ids import Keys, Repeated, are_compared, id_keys
from jobs.planning.survey import Survey, SurveyedFile
from schemas.errors import RowError, SpecError
from schemas.job import Job, PlannedFile

FILES_AT_ONCE = 4
MAX_EXAMPLES = 20
"""Rows that a plan names for each kind of mistake, unless asked for more."""
Numbers = npt.NDArray[np.float64]
Report = Callable[[int], None]
"""Told how many more rows are checked."""
_Way = tuple[str, str, str]
"""(route, model, size)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A row that cannot be made, as the plan names it."""

    uri: str
    row: int
    """Its number in the file, from 0."""
    row_id: str
    """Empty where the input has no ids."""
    problem: RowError


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteCount:
    """Rows that go the same way."""

    route: str
    model: str
    size: str
    """`512x512`, or `input` where the picture that comes in decides."""
    rows: int
    images: int
    pixels: int
    """Of all their pictures together; the model's own size is taken where the input decides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What a look at every row found."""

    counts: tuple[RouteCount, ...]
    bad_rows: tuple[BadRow, ...]
    """The first ones of each error code."""
    num_bad: dict[str, int]
    """Rows that cannot be made, by error code."""


class _FileScan:
    """What one file's rows come to."""

    def __init__(self, file: SurveyedFile, known_repeated: Repeated, max_examples: int) -> None:
        """`known_repeated`: rows of the file that have an earlier row's id."""
        self.file = file
        self._known_repeated = known_repeated
        self._max_examples = max_examples
        self.rows_by_model: Counter[str] = Counter()
        self.repeated: dict[str, list[int]] = {}
        """By model, which of its rows have an earlier row's id."""
        self.rows: Counter[_Way] = Counter()
        self.images: Counter[_Way] = Counter()
        self.pixels: Counter[_Way] = Counter()
        self.num_bad: Counter[str] = Counter()
        self.examples: list[tuple[int, RowError]] = []
        self.bad_rows: list[BadRow] = []
        self.keys: Keys | None = None
        """Of the rows' ids, where they are compared."""

    def planned(self) -> PlannedFile:
        """The plan's line for the file."""
        return PlannedFile(
            uri=self.file.stored.uri,
            size_bytes=self.file.stored.size_bytes,
            etag=self.file.stored.etag,
            num_rows=self.file.num_rows,
            rows_by_model=dict(sorted(self.rows_by_model.items())),
            repeated=self.repeated,
        )

    def add(self, checked: CheckedBatch, job: Job) -> None:
        """Count a batch."""
        checked = self._with_repeated(checked)
        for row, problem in checked.problems.items():
            self.num_bad[problem.code] += 1
            if self.num_bad[problem.code] <= self._max_examples:
                self.examples.append((checked.batch.first_row + row, problem))
        fit = np.ones(checked.batch.num_rows, dtype=bool)
        fit[list(checked.problems)] = False
        for place, route in enumerate(checked.routes):
            mine = checked.positions == place
            self.rows_by_model[route.model] += int(mine.sum())
            if isinstance(route, ResolvedRoute):
                self._count(checked.batch, route, mine & fit, job)

    def _with_repeated(self, checked: CheckedBatch) -> CheckedBatch:
        repeated = self._known_repeated
        if not repeated:
            return checked
        first_row, problems = checked.batch.first_row, dict(checked.problems)
        for row in sorted(row for row in repeated if 0 <= row - first_row < checked.batch.num_rows):
            position = row - first_row
            problem = RowError("duplicate_row_id", f"{repeated[row]} has the same id")
            problems.setdefault(position, problem)
            place = checked.positions[position]
            model = checked.routes[place].model
            mine = [i for i, route in enumerate(checked.routes) if route.model == model]
            before = int(np.isin(checked.positions[:position], mine).sum())
            self.repeated.setdefault(model, []).append(self.rows_by_model[model] + before)
        return replace(checked, problems=problems)

    def _count(self, batch: RowBatch, route: ResolvedRoute, mine: npt.NDArray[np.bool_], job: Job) -> None:
        images = _numbers(batch, "num_images_per_prompt", 1)[mine]
        card = job.models[route.model]
        sized = "height" in route.defaults
        heights = _numbers(batch, "height", route.defaults.get("height") or card.height)[mine]
        widths = _numbers(batch, "width", route.defaults.get("width") or card.width)[mine]
        sizes, places = np.unique(np.stack([heights, widths]), axis=1, return_inverse=True)
        rows_of = np.bincount(places, minlength=sizes.shape[1]).tolist()
        images_of = np.bincount(places, images, sizes.shape[1]).astype(int).tolist()
        for (height, width), rows, made in zip(sizes.T.astype(int).tolist(), rows_of, images_of, strict=True):
            way = (route.name, route.model, f"{width}x{height}" if sized else "input")
            self.rows[way] += rows
            self.images[way] += made
            self.pixels[way] += made * height * width


def gather(
    survey: Survey,
    stores: Stores,
    report: Report,
    max_examples: int,
    repeated: Mapping[str, Repeated] | None = None,
) -> "Gathered":
    """Scan all files; `repeated`: the rows with an earlier row's id, by file, where that is known."""
    job = survey.job
    router = Router(job.spec, job.models)
    gathered = Gathered(max_examples)
    with_ids = repeated is None and are_compared(job.columns, survey.num_rows)

    def scan_file(file: SurveyedFile) -> _FileScan:
        scan = _FileScan(file, (repeated or {}).get(file.stored.uri, {}), max_examples)
        _scan(scan, job, router, stores, report, with_ids=with_ids)
        return scan

    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        for scan in pool.map(scan_file, survey.files):
            gathered.add(scan)
    return gathered


def _scan(
    scan: _FileScan, job: Job, router: Router, stores: Stores, report: Report, *, with_ids: bool
) -> None:
    uri = scan.file.stored.uri
    try:
        with InputFile(stores.of(uri).open(uri), job.columns) as opened:
            _check_ids(opened, uri, job)
            scan.keys = id_keys(opened) if with_ids else None
            for batch in opened.read_for_checks():
                scan.add(check_batch(batch, router, job.models), job)
                report(batch.num_rows)
            _name_examples(scan, opened)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise SpecError(f"input.path: {uri} cannot be read to its end: {error}") from error


class Gathered:
    """What all files' rows come to; of each file only the plan's one line is kept."""

    def __init__(self, max_examples: int) -> None:
        self._max_examples = max_examples
        self.files: list[PlannedFile] = []
        self.keys: list[Keys] = []
        """Each file's, where ids are compared."""
        self._rows: Counter[_Way] = Counter()
        self._images: Counter[_Way] = Counter()
        self._pixels: Counter[_Way] = Counter()
        self._num_bad: Counter[str] = Counter()
        self._bad_rows: dict[str, list[BadRow]] = {}

    def add(self, scan: _FileScan) -> None:
        """Add a file's counts."""
        self.files.append(scan.planned())
        self.keys += [] if scan.keys is None else [scan.keys]
        self._rows += scan.rows
        self._images += scan.images
        self._pixels += scan.pixels
        self._num_bad += scan.num_bad
        for bad in scan.bad_rows:
            examples = self._bad_rows.setdefault(bad.problem.code, [])
            if len(examples) < self._max_examples:
                examples.append(bad)

    def findings(self) -> Findings:
        """The sums."""
        counts = [
            RouteCount(
                route=way[0],
                model=way[1],
                size=way[2],
                rows=self._rows[way],
                images=self._images[way],
                pixels=self._pixels[way],
            )
            for way in sorted(self._rows)
        ]
        bad_rows = [bad for code in sorted(self._bad_rows) for bad in self._bad_rows[code]]
        num_bad = dict(sorted(self._num_bad.items()))
        return Findings(counts=tuple(counts), bad_rows=tuple(bad_rows), num_bad=num_bad)


def _check_ids(opened: InputFile, uri: str, job: Job) -> None:
    if "row_id" in job.columns.fields:
        nulls = opened.num_nulls("row_id")
        if nulls:
            column = job.columns.fields["row_id"]
            raise SpecError(
                f"column `{column}` has {nulls:,} nulls in {uri}; every row needs its id, "
                "or leave the column out and rows are named after file and number"
            )


def _name_examples(scan: _FileScan, opened: InputFile) -> None:
    ids = opened.row_ids([row for row, _ in scan.examples])
    scan.bad_rows = [
        BadRow(uri=scan.file.stored.uri, row=row, row_id=row_id, problem=problem)
        for (row, problem), row_id in zip(scan.examples, ids, strict=True)
    ]


def _numbers(batch: RowBatch, name: str, default: object) -> Numbers:
    column = batch.fields.get(name)
    if column is None:
        return np.full(batch.num_rows, default, dtype=np.float64)
    values: Numbers = column.cast(pa.float64(), safe=False).fill_null(default).to_numpy(zero_copy_only=False)
    return values

"""The rows of a trial: some of each route, by a hash of their ids, so that they are the same each time."""

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from actors.rows.routing import Router
from actors.rows.row import derived_row_id
from actors.storage.stores import Stores
from jobs.output.figures import codes_text
from jobs.planning.row_scan import ReportProgress, checked_batches, opened_input
from jobs.survey.survey import Survey, SurveyedFile
from schemas.errors import SpecError
from schemas.job import Job
from schemas.wording.amounts import counted
from schemas.wording.nearest import did_you_mean
from schemas.wording.printable import listed, shortened

MAX_COMPARED_IDS = 10_000
"""The ids with which one that the input does not have is compared, to tell which was meant."""
MAX_NAMED = 3
"""The unknown ids that a message names, and the ids of the input that it shows as examples."""

RowId = str | int


class SampledRow(NamedTuple):
    """A row of the input that a trial generates."""

    uri: str
    """That of its file."""
    row: int
    """Its number in the file, from 0."""
    row_id: RowId


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The rows of a trial."""

    rows: tuple[SampledRow, ...]
    """In the order of the input."""
    num_bad: Mapping[str, int] = field(default_factory=dict)
    """The number of all rows of the input that cannot be generated, by error code."""


class _Ranked(NamedTuple):
    """A row that may be sampled; those of the highest rank are."""

    rank: int
    position: tuple[int, int]
    """Those of its file and of its row in it."""
    row_id: RowId


def sample_rows(survey: Survey, names: Mapping[str, str], limit: int, report: ReportProgress) -> Sample:
    """At most `limit` rows that can be generated, the same number of each route as far as there are as many.

    `names`: by URI, the name with which the ids of a file's rows begin if the input has no ids. SpecError
    where no row can be generated.
    """
    best: defaultdict[tuple[str, str], list[_Ranked]] = defaultdict(list)
    num_bad: Counter[str] = Counter()
    for number, file in enumerate(survey.files):
        for route, row, row_id in _rows_that_fit(survey, file, names, num_bad, report):
            ranked = _Ranked(_rank(row_id), (number, row), row_id)
            of_route = best[route]
            if len(of_route) < limit:
                heapq.heappush(of_route, ranked)
            elif ranked > of_route[0]:
                heapq.heapreplace(of_route, ranked)
    if not best:
        raise SpecError(
            f"none of the {counted(survey.num_rows, 'row')} can be generated "
            f"({codes_text(num_bad.items())}); `darkroom plan` says why"
        )
    chosen = _evenly([sorted(best[route], reverse=True) for route in sorted(best)], limit)
    return Sample(rows=tuple(_sampled(survey, chosen)), num_bad=dict(num_bad))


def named_rows(survey: Survey, names: Mapping[str, str], ids: Collection[str]) -> tuple[SampledRow, ...]:
    """The rows with these ids; SpecError where the input does not have one of them."""
    chosen, others = dict[str, _Ranked](), dict[str, None]()
    for number, file in enumerate(survey.files):
        for row, row_id in enumerate(_row_ids(survey, file, names)):
            if (text := str(row_id)) in ids:
                chosen.setdefault(text, _Ranked(0, (number, row), row_id))
            elif len(others) < MAX_COMPARED_IDS:
                others[text] = None
    if unknown := [row_id for row_id in ids if row_id not in chosen]:
        named = ", ".join(
            f"{shortened(row_id)}{did_you_mean(row_id, others)}" for row_id in unknown[:MAX_NAMED]
        )
        has = listed([*chosen, *others][:MAX_NAMED])
        raise SpecError(f"the input has no row {named}; rows that it has are {has}")
    by_position = sorted(chosen.values(), key=lambda ranked: ranked.position)
    return tuple(_sampled(survey, by_position))


def _sampled(survey: Survey, chosen: Iterable[_Ranked]) -> Iterator[SampledRow]:
    for _, (number, row), row_id in chosen:
        yield SampledRow(survey.files[number].stored.uri, row, row_id)


def _evenly(routes: list[list[_Ranked]], limit: int) -> list[_Ranked]:
    """At most `limit` rows: the first of each route, then the second of each, and so on."""
    turns = (of_route[turn] for turn in range(limit) for of_route in routes if turn < len(of_route))
    chosen = [ranked for ranked, _ in zip(turns, range(limit), strict=False)]
    return sorted(chosen, key=lambda ranked: ranked.position)


def _rank(row_id: RowId) -> int:
    """A number that spreads ids evenly, and is the same in each process."""
    return int.from_bytes(hashlib.blake2b(str(row_id).encode(), digest_size=8).digest(), "big")


def _rows_that_fit(
    survey: Survey,
    file: SurveyedFile,
    names: Mapping[str, str],
    num_bad: Counter[str],
    report: ReportProgress,
) -> Iterator[tuple[tuple[str, str], int, RowId]]:
    """((route, model), number, id) of each row of a file that can be generated; the others are counted."""
    if not file.num_rows:  # Such a file may lack columns that all others have.
        return
    job, ids = survey.job, _row_ids(survey, file, names)
    router = Router(job.spec, job.models)
    with opened_input(file.stored.uri, file.rows_uri, job, _stores(job)) as opened:
        for checked in checked_batches(opened, file.stored.uri, job, router):
            num_bad.update(problem.code for problem in checked.problems.values())
            for position, row_id in zip(range(checked.batch.num_rows), ids, strict=False):
                if position not in checked.problems:
                    route = checked.routes[checked.route_positions[position]]
                    yield (route.name, route.model), checked.batch.first_row + position, row_id
            report(checked.batch.num_rows)


def _row_ids(survey: Survey, file: SurveyedFile, names: Mapping[str, str]) -> Iterator[RowId]:
    """The ids of all rows of a file, in order: those that they have in the output of the job."""
    job, uri = survey.job, file.stored.uri
    if "row_id" not in job.columns.fields:
        yield from (derived_row_id(names[uri], row) for row in range(file.num_rows))
        return
    with opened_input(uri, file.rows_uri, job, _stores(job)) as opened:
        for batch in opened.read_ids():
            yield from batch.fields["row_id"].to_pylist()


def _stores(job: Job) -> Stores:
    return Stores(job.spec.errors.storage_deadline_s)

"""Facts about outputs of very many parts: what is read of them, and what is kept in memory."""

import io
import json
import os
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from rich.console import Console

from actors.storage.local_disk import LocalStorage
from actors.storage.objects import ListedObject, Tail
from actors.storage.output import Output, open_output
from jobs.output.figures import Totals
from jobs.output.job_record import JobRecord, claim
from jobs.output.parts import list_parts, totals_of
from jobs.output.tally import Tally
from jobs.planning.plan import make_plan
from jobs.reports.manifest import write_manifest
from jobs.reports.status import print_status
from jobs.reports.success import unfinish
from jobs.reports.summary import current_summary, write_summary
from jobs.survey.survey import make_survey
from schemas.errors import RefusedError
from schemas.output_layout import MANIFEST, SUCCESS, SUMMARY, ShardNames, parse_part_file, shard_name
from tests.support.engines import GreyEngine
from tests.support.in_process import job_spec, worker_for, write_rows
from tests.support.s3.fault_proxy import FaultProxy
from tests.support.side_effects import recorded_opens

NUM_PARTS = 20
PADDING_BYTES = 300_000


@dataclass(frozen=True, kw_only=True)
class Written:
    """An output whose parts are all there, and of which no report is written yet."""

    output: Output
    record: JobRecord

    def write_reports(self, **changes: int) -> None:
        """Write the summary, with these counts changed, the manifest, and `_SUCCESS`."""
        parts = list_parts(self.output, ShardNames([NUM_PARTS]))
        totals = replace(totals_of(self.output, parts), **changes)
        write_summary(self.output, self.record, totals, Tally(rows_total=1, rows_before=0).figures())
        write_manifest(self.output, ShardNames([NUM_PARTS]))
        self.output.replace(SUCCESS, b"")

    def status(self) -> list[str]:
        """The lines that `darkroom status` prints."""
        printed = io.StringIO()
        print_status(self.output.path, Console(file=printed, width=200))
        return printed.getvalue().splitlines()


def write_output(path: str, folder: Path) -> Written:
    """Write an output whose parts have a real footer behind a lot of noise."""
    rows = write_rows(folder / "in.parquet", [{"prompt": f"fox {i}"} for i in range(NUM_PARTS)])
    spec = job_spec(rows, folder / "unused", batching={"shard_rows": 1}, output={"path": path})
    plan, findings = make_plan(make_survey(spec))
    output = open_output(path)
    record = claim(output, plan, findings)
    first = next(plan.shards())
    with worker_for(plan, GreyEngine(), output=open_output(str(folder / "made"))) as worker:
        worker.run(first)
    part = open_output(str(folder / "made")).storage.read(
        str(folder / "made" / "data" / f"{first.name}.parquet")
    )
    data = part[:4] + os.urandom(PADDING_BYTES) + part[4:]
    for shard in plan.shards():
        output.storage.create(output.part_uri(shard.name), data, {})
    return Written(output=output, record=record)


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return write_output(str(tmp_path / "out"), tmp_path)


def test_status_on_s3_asks_once_for_the_end_of_each_part(
    s3_faults: FaultProxy, s3_folder: str, tmp_path: Path
) -> None:
    """Of an unfinished job: 16 KiB have the footer, and no other request says how long the part is."""
    written = write_output(s3_folder, tmp_path)
    s3_faults.calm()

    lines = written.status()

    assert lines[0] == "test: 20 of 20 parts, 20 of 20 rows"
    assert s3_faults.count("GET", "/data/train-") == NUM_PARTS
    assert s3_faults.count("HEAD", "/data/train-") == 0
    assert s3_faults.bytes_sent < NUM_PARTS * 18_000


def test_status_of_a_finished_job_reads_no_part(
    s3_faults: FaultProxy, s3_folder: str, tmp_path: Path
) -> None:
    """The listing, the summary and the manifest say it all."""
    written = write_output(s3_folder, tmp_path)
    written.write_reports()
    s3_faults.calm()

    lines = written.status()

    assert lines[1] == "20 rows ok, 0 filtered, 0 failed; 20 images"
    assert lines[2].startswith("finished at 2")
    assert s3_faults.count("GET", "/data/train-") == 0
    assert s3_faults.bytes_sent < NUM_PARTS * 1_000 + 20_000


def test_parts_are_listed_without_opening_them(written: Written, tmp_path: Path) -> None:
    """Their names and sizes say enough; an etag would take both ends of each."""
    with recorded_opens(tmp_path) as opened:
        parts = list_parts(written.output, ShardNames([NUM_PARTS]))

    assert (len(parts), parts.are_all) == (NUM_PARTS, True)
    assert opened == []


def test_a_summary_counts_as_long_as_its_parts_are_there(written: Written) -> None:
    """What it says is then not looked for in the parts."""
    written.write_reports(ok=7)

    assert written.status()[1] == "7 rows ok, 0 filtered, 0 failed; 20 images"


def shrink_a_part(output: Output) -> None:
    """As a retry does that was interrupted."""
    uri = list_parts(output, ShardNames([NUM_PARTS]))[3].uri
    output.storage.replace(uri, (data := output.storage.read(uri))[:4] + data[5:])


def swap_sizes(output: Output) -> None:
    """Two parts with other sizes, of which the sum is what it was."""
    shrink_a_part(output)
    uri = list_parts(output, ShardNames([NUM_PARTS]))[4].uri
    output.storage.replace(uri, (data := output.storage.read(uri))[:4] + b"x" + data[4:])


def list_a_shrunk_part(output: Output) -> None:
    """The manifest is newer than the summary."""
    shrink_a_part(output)
    write_manifest(output, ShardNames([NUM_PARTS]))


def cut_manifest(output: Output) -> None:
    output.replace(MANIFEST, b"".join(output.read(MANIFEST).splitlines(keepends=True)[:-1]))


@pytest.mark.parametrize(
    "change",
    [
        shrink_a_part,
        swap_sizes,
        list_a_shrunk_part,
        cut_manifest,
        lambda output: output.replace(MANIFEST, output.read(MANIFEST) * 2),
        lambda output: output.replace(MANIFEST, b""),
        lambda output: output.replace(MANIFEST, b"[" * 5_000),
        lambda output: output.replace(MANIFEST, b"[]\n"),
        lambda output: output.replace(MANIFEST, b'{"part": 1, "size_bytes": 1}\n'),
        lambda output: output.storage.delete(output.uri(MANIFEST)),
        unfinish,
    ],
    ids=["size", "sizes", "newer", "fewer", "more", "empty", "deep", "list", "number", "none", "success"],
)
def test_a_summary_of_other_parts_is_not_believed(written: Written, change: object) -> None:
    """The parts are counted instead."""
    written.write_reports(ok=7)
    assert callable(change)

    change(written.output)

    assert written.status()[1] == "20 rows ok, 0 filtered, 0 failed; 20 images"
    assert (
        current_summary(written.output, written.record, list_parts(written.output, ShardNames([NUM_PARTS])))
        is None
    )


def test_a_summary_from_before_a_crash_is_not_believed(written: Written) -> None:
    """A driver that dies between the two leaves the new summary with the old manifest."""
    written.write_reports()
    manifest = written.output.read(MANIFEST)
    shrink_a_part(written.output)
    written.write_reports(ok=7)

    written.output.replace(MANIFEST, manifest)

    assert json.loads(written.output.read(SUMMARY))["ok"] == 7
    assert written.status()[1] == "20 rows ok, 0 filtered, 0 failed; 20 images"


def test_it_is_known_which_parts_are_missing(written: Written) -> None:
    """Each by its index, whatever is missing before it."""
    for index in (0, 3, 19):
        written.output.storage.delete(written.output.part_uri(shard_name(index, NUM_PARTS)))

    parts = list_parts(written.output, ShardNames([NUM_PARTS]))

    assert [index for index in range(NUM_PARTS) if not parts.has(index)] == [0, 3, 19]
    assert [index for index, is_done in enumerate(parts.done()) if not is_done] == [0, 3, 19]
    assert (len(parts), parts.are_all, parts[0].index, parts[-1].index) == (17, False, 1, 18)


def test_a_part_has_one_name(written: Written) -> None:
    """Readers take every file of the folder: with a part under two names they have its rows twice."""
    written.output.storage.replace(written.output.uri("data/train-000003-of-00020.parquet"), b"")

    with pytest.raises(RefusedError, match=r"is another name of the part train-00003-of-00020\.parquet"):
        list_parts(written.output, ShardNames([NUM_PARTS]))


class ManyParts(LocalStorage):
    """A disk on which one part stands for very many."""

    def __init__(self, part: Path, num_parts: int) -> None:
        super().__init__(temp_dir="")
        self._tail = super().read_tail(str(part), 16 << 10)
        self._num_parts = num_parts

    def list_sizes(self, prefix: str) -> Iterator[ListedObject]:
        for index in reversed(range(self._num_parts)):
            yield ListedObject(uri=f"{prefix}/{shard_name(index, self._num_parts)}.parquet", size_bytes=index)

    def read_tail(self, uri: str, num_bytes: int) -> Tail:
        return self._tail


def test_what_adds_up_very_many_parts_takes_little_memory(written: Written) -> None:
    """16 bytes for each, and a few footers: 5,000 that wait for their turn take 10 MB."""
    num_parts = 5_000
    part = Path(list_parts(written.output, ShardNames([NUM_PARTS]))[0].uri)
    output = Output(ManyParts(part, num_parts), "/nowhere")
    totals_of(output, list_parts(output, ShardNames([num_parts]))[:100])

    tracemalloc.start()
    parts = list_parts(output, ShardNames([num_parts]))
    totals = totals_of(output, parts)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert totals == Totals(ok=num_parts, images=num_parts, size_bytes=sum(range(num_parts)))
    assert parts[num_parts - 1].index == num_parts - 1
    assert peak < 4_000_000


@pytest.mark.parametrize("num_shards", [1, 99_999, 100_000, 100_001, 1_000_000])
def test_names_of_parts_sort_as_their_shards_do(num_shards: int) -> None:
    """Readers of a data set take its files by name. Up to 100,000, five digits are what the Hub has."""
    indices = sorted(
        {0, 9, num_shards // 2, 9_999, 99_999, num_shards - 2, num_shards - 1} & {*range(num_shards)}
    )
    names = [shard_name(index, num_shards) for index in indices]

    assert sorted(names) == names
    assert [parse_part_file(f"{name}.parquet") for name in names] == [(0, i, num_shards) for i in indices]
    assert shard_name(0, min(num_shards, 100_000)) == f"train-00000-of-{min(num_shards, 100_000):05d}"

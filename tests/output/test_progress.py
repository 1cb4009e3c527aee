"""How far a job is: its parts and their sums, its rate, the room that it still needs."""

import io
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from actors.images.input_images import MAX_IMAGE_FILE_BYTES
from actors.storage.output import Output, open_output
from jobs.fleet.progress import display
from jobs.output.capacity import bytes_to_come, refuse_full_disk
from jobs.output.figures import PlannedTime, Totals, generated_text
from jobs.output.parts import list_parts, output_totals
from jobs.output.stored_images import read_image
from jobs.output.tally import MAX_SPEEDS, Tally, WorkersNow
from schemas.errors import RowError, SpecError
from schemas.job import FailedRows, ShardReport, Speed
from schemas.output_layout import COUNTS_KEY, ERROR_CODES_KEY, ShardNames, part_file, shard_name
from tests.support.s3.quick_waits import QuickWaits


@pytest.fixture
def output(tmp_path: Path) -> Output:
    """An output in a folder that is called like its own folder of images."""
    folder = tmp_path / "images" / "out"
    (folder / "data").mkdir(parents=True)
    return open_output(str(folder))


def write_part(output: Output, index: int, num_shards: int, **counts: int) -> int:
    """Write a part with these counts in its footer; its size. Every other count is an error code's."""
    named = {name: counts.pop(name, 0) for name in ("ok", "filtered", "failed", "images")}
    footer = {COUNTS_KEY: json.dumps(named), ERROR_CODES_KEY: json.dumps(counts)}
    path = Path(output.uri(part_file(shard_name(index, num_shards))))
    pq.write_table(pa.table({"note": ["x" * index]}).replace_schema_metadata(footer), path)
    return path.stat().st_size


def test_the_sums_of_an_output_are_those_of_all_its_parts(output: Output) -> None:
    """Rows, images and bytes; error codes by how many rows have them, in whichever part they first come."""
    sizes = [
        write_part(output, 0, 4, ok=5, failed=1, images=11, invalid_size=1),
        write_part(output, 1, 4, ok=2, filtered=3, failed=2, images=3, invalid_size=1, mask_size=1),
        write_part(output, 3, 4, failed=4, unknown_task=4),
    ]

    totals = output_totals(output, ShardNames([4]))

    assert totals == Totals(
        ok=7,
        filtered=3,
        failed=7,
        images=14,
        size_bytes=sum(sizes),
        error_codes=(("unknown_task", 4), ("invalid_size", 2), ("mask_size", 1)),
    )
    assert totals.rows == 17
    assert [*list_parts(output, ShardNames([4])).done()] == [1, 1, 0, 1]


@pytest.mark.parametrize("num_shards", [3, 100_001])
def test_other_files_in_data_are_not_parts(output: Output, num_shards: int) -> None:
    """People put notes and copies there; a shard's number has as many digits as it needs."""
    for index in (0, num_shards - 1):
        write_part(output, index, num_shards)
    first = shard_name(0, num_shards)
    for name in (".hidden", "notes.txt", f"{first}.parquet.bak", f"a-{first}.parquet", f"x/{first}.parquet"):
        path = Path(output.uri(f"data/{name}"))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")

    assert [part.index for part in list_parts(output, ShardNames([num_shards]))] == [0, num_shards - 1]


def test_the_largest_part_of_an_output(output: Output) -> None:
    """By its size; 0 where there is no part."""
    assert list_parts(output, ShardNames([4])).largest_bytes == 0

    sizes = [write_part(output, 0, 4, ok=1), write_part(output, 2, 4, ok=123456, failed=7)]

    assert list_parts(output, ShardNames([4])).largest_bytes == max(sizes) > min(sizes)


def test_the_room_that_a_job_still_needs_is_that_of_its_missing_parts(output: Output) -> None:
    """Each counted as large as those that are there are on average."""
    nothing_yet = bytes_to_come(list_parts(output, ShardNames([10])))
    sizes = [write_part(output, index, 10) for index in (0, 4, 9)]

    needed = bytes_to_come(list_parts(output, ShardNames([10])))

    assert nothing_yet == 0
    assert needed == sum(sizes) * 7 // 3


def test_an_output_must_fit_into_what_its_disk_has_free(output: Output) -> None:
    """Not into all of the disk; the output's folder need not exist yet."""
    usage = shutil.disk_usage(output.path)
    path = output.uri("not/yet")

    refuse_full_disk(path, usage.free // 2)
    with pytest.raises(SpecError, match=f"{path} will need about .*, and its disk has .* free"):
        refuse_full_disk(path, (usage.free + usage.total) // 2)


def report(worker: str, *, ok: int = 0, filtered: int = 0, failed: int = 0, **changes: int) -> ShardReport:
    return ShardReport(
        index=0,
        committed=True,
        ok=ok,
        filtered=filtered,
        failed=failed,
        images=2 * ok,
        size_bytes=1,
        failures={},
        unforeseen={},
        seconds={"read": 1.5},
        models_loaded=(),
        num_loads=changes.get("num_loads", 0),
        worker=worker,
        cpu_seconds=changes.get("cpu_seconds", 0),
        peak_rss_bytes=changes.get("peak_rss_bytes", 0),
    )


def speed(**changes: Any) -> Speed:
    fields = {"device": "GPU", "num_cpus": 0, "model": "sd", "checkpoint": "c", "dtype": "auto"}
    counts = {"images": 2, "image_steps": 40, "guided_steps": 40, "step_seconds": 4.0, "image_seconds": 1.0}
    return Speed(**({"task": "text2img", "pixels": 4100} | fields | counts | changes))


def test_a_run_adds_up_the_speeds_of_one_kind() -> None:
    """Whichever worker tells them; a model's loading is the mean of the workers that have loaded it."""
    tally = Tally(rows_total=4, rows_before=0)
    tally.add(replace(report("a"), speeds=(speed(),), load_seconds={"sd": 3.0}, peak_device_bytes=7))
    tally.add(replace(report("a"), speeds=(speed(pixels=9),), load_seconds={"sd": 4.0, "xl": 9.0}))
    tally.add(replace(report("b"), speeds=(speed(images=1),), load_seconds={"sd": 2.0}, peak_device_bytes=5))

    figures = tally.figures()

    both = speed(images=3, image_steps=80, guided_steps=80, step_seconds=8.0, image_seconds=2.0)
    assert figures.speeds == (both, speed(pixels=9))
    assert figures.load_seconds == {"sd": 3.0, "xl": 9.0}
    assert figures.peak_device_bytes == 7


def test_a_run_keeps_the_speeds_that_took_the_most_time() -> None:
    """An input with images of thousands of sizes would fill the summary with them."""
    tally = Tally(rows_total=4, rows_before=0)
    tally.add(replace(report("a"), speeds=tuple(speed(pixels=n, step_seconds=float(n)) for n in range(300))))

    kept = [each.pixels for each in tally.figures().speeds]

    assert kept == [*range(299, 299 - MAX_SPEEDS, -1)]


def test_a_run_of_other_rows_is_not_compared_with_the_planned_time() -> None:
    """A resumed run has only those that were left."""
    planned = PlannedTime(
        rows=4, workers=2, seconds=50.0, least_seconds=40.0, most_seconds=65.0, source="a trial"
    )
    tally = Tally(rows_total=4, rows_before=0, planned=planned)

    tally.add(report("a", ok=3))
    of_three = tally.figures()
    tally.add(report("a", failed=1))
    of_all = tally.figures()

    assert of_three.planned is None
    assert of_all.planned == planned
    assert generated_text(replace(of_all, seconds=55.0)).endswith(
        "; with the start 55 s, planned 40 s to 1 min 5 s with 2 workers"
    )


def test_the_rate_of_a_run_is_that_since_its_first_worker_was_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the start of Ray nor the rows of an earlier run count for it."""
    clock = QuickWaits(monkeypatch)
    # The field's default is the real clock, which goes on while this test stands still.
    tally = Tally(rows_total=100, rows_before=40, begun=time.monotonic())
    clock.pass_seconds(20)
    tally.tick(0, WorkersNow(num_workers=0))
    clock.pass_seconds(10)
    rate_before, left_before = tally.images_per_second, tally.seconds_left
    tally.tick(0, WorkersNow(num_workers=2))

    clock.pass_seconds(5)
    tally.tick(6, WorkersNow(num_workers=2))
    early = (tally.rows_done, tally.images_per_second, tally.seconds_left)
    clock.pass_seconds(5)
    tally.add(report("a", ok=6, filtered=3, failed=1))
    tally.tick(5, WorkersNow(num_workers=1))

    assert (rate_before, left_before) == (0, None)
    assert early == pytest.approx((46, 6 / 5, 54 * 5 / 6))
    late = (tally.rows_done, tally.images_per_second, tally.seconds_left)
    # What came five seconds ago counts a little less than what comes now.
    assert late == pytest.approx((55, 17 / 10, 45 * 10 / 15), rel=0.02)
    assert tally.seconds == pytest.approx(40)
    assert tally.failed == 1


def test_a_run_without_workers_says_what_they_wait_for() -> None:
    """Until the first one is there."""
    tally = Tally(rows_total=10, rows_before=0)

    tally.tick(0, WorkersNow(num_workers=0))
    at_first = tally.line()
    tally.tick(0, WorkersNow(num_workers=0, short_of="2 of 2 CPUs in use"))
    later = tally.line()
    tally.tick(0, WorkersNow(num_workers=1, short_of="2 of 2 CPUs in use"))

    assert " waiting for workers · " in at_first
    assert " waiting for workers (2 of 2 CPUs in use) · " in later
    assert "in use" not in tally.line()


def test_a_run_whose_workers_wait_for_the_store_says_so() -> None:
    """As long as they do."""
    tally = Tally(rows_total=10, rows_before=0)

    tally.tick(
        0, WorkersNow(num_workers=2, waits_for="1 worker waits for get_object s3://b/k: SlowDown (HTTP 503)")
    )
    waiting = tally.line()
    tally.tick(0, WorkersNow(num_workers=2))

    assert waiting.endswith(" · 2 workers · 1 worker waits for get_object s3://b/k: SlowDown (HTTP 503)")
    assert tally.line().endswith(" · 2 workers")


def test_between_two_bursts_neither_the_rate_nor_the_time_left_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Batches come at once. What is shown then stays until the next one."""
    clock = QuickWaits(monkeypatch)
    tally = Tally(rows_total=100, rows_before=0, begun=time.monotonic())
    tally.tick(0, WorkersNow(num_workers=1))
    shown = []
    for images in (20, 20, 20, 40):
        clock.pass_seconds(10)
        tally.tick(images, WorkersNow(num_workers=1))
        shown.append((tally.images_per_second, tally.seconds_left))

    assert shown[0] == shown[1] == shown[2] == pytest.approx((2.0, 40.0))
    assert shown[3][0] < 2.0


def test_the_rate_is_that_of_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first images come after the model has been loaded; ten minutes later that counts no more."""
    clock = QuickWaits(monkeypatch)
    tally = Tally(rows_total=10_000, rows_before=0, begun=time.monotonic())
    tally.tick(0, WorkersNow(num_workers=1))
    clock.pass_seconds(300)
    for images in range(5, 3_001, 5):
        clock.pass_seconds(1)
        tally.tick(images, WorkersNow(num_workers=1))

    assert tally.images_per_second == pytest.approx(5, rel=0.05)
    assert tally.seconds_left == pytest.approx(7_000 / 5, rel=0.05)


@pytest.mark.parametrize(
    ("workers", "text"),
    [
        (
            WorkersNow(num_workers=2, phases={"denoising": 2}, num_steps=1_204),
            "2 workers: denoising (1,204 steps)",
        ),
        (
            WorkersNow(num_workers=3, phases={"loading sd": 1, "denoising": 2}),
            "3 workers: 2 denoising, 1 loading sd",
        ),
        (WorkersNow(num_workers=1, num_steps=1), "1 worker (1 step)"),
    ],
)
def test_progress_tells_what_the_workers_do(workers: WorkersNow, text: str) -> None:
    """Also in the minute before a large model's first image."""
    tally = Tally(rows_total=10, rows_before=0)

    tally.tick(0, workers)

    assert tally.line() == f"0 of 10 rows (0%) · starting · 0 failed · {text}"


def test_failures_are_told_by_code() -> None:
    """The three most frequent ones."""
    codes = {"a": 1, "b": 4, "c": 2, "d": 3}
    tally = Tally(rows_total=10, rows_before=0, failed=10)
    tally.failures = {code: FailedRows(num_rows=number, message="m") for code, number in codes.items()}

    assert " · 10 failed (4 b, 3 d, 2 c, ...) · " in tally.line()


def test_a_bar_has_the_whole_width_of_the_terminal_for_its_details() -> None:
    """At 80 columns, nothing is cut off."""
    screen = io.StringIO()
    tally = Tally(rows_total=1_000_000, rows_before=0, failed=3)
    workers = WorkersNow(num_workers=12, phases={"denoising": 11, "loading sd": 1}, num_steps=123_456)
    tally.tick(123_456, workers)

    with display(Console(file=screen, width=80, force_terminal=True, color_system=None)) as bar:
        bar.show(tally)

    assert f"{tally.rows_text()}\n" in screen.getvalue().replace(" \n", "\n")
    assert tally.details() in screen.getvalue().replace("\n", " ").replace("  ", " ")


def test_no_more_rows_are_done_than_there_are() -> None:
    """The images of unfinished shards are an estimate: a row may have several."""
    tally = Tally(rows_total=10, rows_before=4)

    tally.tick(50, WorkersNow(num_workers=1))

    assert tally.rows_done == 10
    assert tally.seconds_left == 0


def test_the_figures_of_a_run_are_those_of_its_workers() -> None:
    """What a worker tells of itself is a sum over its shards, whose reports may come in any order."""
    tally = Tally(rows_total=10, rows_before=0)
    for shard in (
        report("a", ok=1, num_loads=1, cpu_seconds=10, peak_rss_bytes=500),
        report("b", ok=1, num_loads=1, cpu_seconds=3, peak_rss_bytes=900),
        report("a", ok=2, num_loads=2, cpu_seconds=25, peak_rss_bytes=700),
        report("b", ok=1, num_loads=0, cpu_seconds=4, peak_rss_bytes=800),
    ):
        tally.add(shard)

    figures = tally.figures()

    assert (figures.checkpoint_loads, figures.worker_cpu_seconds) == (3, 29)
    assert figures.worker_peak_rss_bytes == 900
    assert figures.images == 10
    assert figures.seconds_by_stage == {"read": 6.0}


def test_an_image_of_its_own_is_found_where_the_output_is_now(output: Output) -> None:
    """Whatever the folders above the output are called, now or when the part was written."""
    output.replace("images/shard/a.png", b"image")

    for root in (output.path, "s3://old/images/out", "/elsewhere"):
        assert read_image(output, f"{root}/images/shard/a.png") == b"image"
    assert read_image(output, "images/shard/a.png") == b"image"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("images/shard/gone.png", "unreadable_uri"),
        ("images/shard", "unreadable_uri"),
        ("images/large.png", "unreadable_uri"),
        ("images/../secret.png", "disallowed_uri"),
        ("images/shard/../../secret.png", "disallowed_uri"),
        ("images/", "disallowed_uri"),
    ],
)
def test_an_image_that_cannot_be_read_is_one_rows_problem(output: Output, name: str, code: str) -> None:
    """A part may name anything: nothing outside of the output's images is read, and nothing without end."""
    output.replace("images/shard/a.png", b"image")
    output.replace("secret.png", b"secret")
    with open(output.uri("images/large.png"), "wb") as file:
        file.truncate(MAX_IMAGE_FILE_BYTES + 1)

    with pytest.raises(RowError) as raised:
        read_image(output, output.uri(name))

    assert raised.value.code == code

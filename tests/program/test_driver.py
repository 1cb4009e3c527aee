"""`darkroom run` and `darkroom retry` as whole drivers in this process, on a Ray that tests control."""

import io
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from actors.engine.engine import Engine
from actors.engine.samples import Sample
from actors.storage.output import open_output
from jobs.dispatch.dispatcher import Dispatcher
from jobs.fleet.budget import judge
from jobs.fleet.pool import Tick
from jobs.fleet.shard_loop import RunWatch, generate_shards
from jobs.output.tally import Tally
from schemas.errors import BudgetError, DarkroomError, RefusedError, RowError, SpecError
from schemas.job import Shard, ShardReport, ShardSnapshot, WorkerProgress
from schemas.output_layout import LEASE
from schemas.spec.job_spec import JobSpec
from tests.support.engines import NaNEngine, NoiseEngine
from tests.support.in_process import job_spec, plan_for, printed_by_verify
from tests.support.running import output_rows, parts, row_ids, text_rows, write_rows
from tests.support.s3.fault_proxy import FaultProxy
from tests.support.s3.on_s3 import upload
from tests.support.simulation.fake_ray import Actor
from tests.support.simulation.in_process_driver import InProcessDriver, on_fake_ray
from tests.support.simulation.reports import report_of

SHARD_ROWS = 4
CODES = ("nonfinite_image", "generation_error")
"""The error codes of the rows that a FailingEngine fails, in turns."""


def spec_of(folder: Path, num_rows: int = 18, **sections: Any) -> JobSpec:
    """A job of five shards, the last of which is smaller; its output is `out`."""
    rows = write_rows(folder / "rows.parquet", text_rows(num_rows))
    defaults = {"batching": {"shard_rows": SHARD_ROWS}}
    return job_spec(rows, folder / "out", **defaults | sections)


@pytest.fixture
def driver(tmp_path: Path) -> InProcessDriver:
    return InProcessDriver(spec_of(tmp_path))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


def indices(shards: Sequence[Shard]) -> list[int]:
    return sorted(shard.index for shard in shards)


def raise_a_bug(actor: Actor, shard: Shard) -> None:
    if shard.index == 1:
        raise ValueError("a bug")


def take_over(output: Path) -> None:
    """Write the lease as another driver does that has taken the output over."""
    lease = output / LEASE
    lease.write_text(lease.read_text().replace('"driver": "', '"driver": "another-'))


def written_at(paths: Iterable[Path]) -> dict[Path, int]:
    """When each of the files and folders was written last."""
    return {path: path.stat().st_mtime_ns for path in paths}


class TestRun:
    """The first run of a job, and those after it."""

    def test_every_shard_is_generated_once_and_success_is_written(
        self, driver: InProcessDriver, output: Path
    ) -> None:
        """The result counts what was generated, and `verify` accepts the output."""
        result = driver.run()

        assert indices(driver.given) == [0, 1, 2, 3, 4]
        assert (result.run.rows, result.run.images, result.abandoned) == (18, 18, ())
        assert (result.totals.rows, result.totals.ok) == (18, 18)
        assert (output / "_SUCCESS").exists()
        assert row_ids(output) == [row["row_id"] for row in text_rows(18)]
        assert "18 of 18 input rows have exactly one outcome" in printed_by_verify(driver.spec)

    def test_a_finished_job_is_left_as_it_is(self, driver: InProcessDriver, output: Path) -> None:
        """No worker is started, and nothing is written."""
        driver.run()
        driver.given.clear()
        before = written_at(output.rglob("*"))

        result = driver.run()

        assert driver.given == []
        assert (result.run.rows, result.run.images, result.totals.ok) == (0, 0, 18)
        assert written_at(output.rglob("*")) == before

    def test_a_job_that_was_killed_while_finishing_is_finished_without_a_worker(
        self, driver: InProcessDriver, output: Path
    ) -> None:
        """All parts are there, and `_SUCCESS` is not."""
        driver.run()
        driver.given.clear()
        (output / "_SUCCESS").unlink()

        result = driver.run()

        assert driver.given == []
        assert (result.run.rows, result.totals.ok) == (0, 18)
        assert (output / "_SUCCESS").exists()

    def test_only_missing_parts_are_generated(self, driver: InProcessDriver, output: Path) -> None:
        """The others stay, and count as done from the start."""
        driver.run()
        driver.given.clear()
        lost = [parts(output)[1], parts(output)[4]]
        for part in lost:
            part.unlink()
        (output / "_SUCCESS").unlink()
        before = written_at(parts(output))

        result = driver.run()

        assert indices(driver.given) == [1, 4]
        assert (result.run.rows, result.totals.ok) == (6, 18)
        assert before.items() <= written_at(parts(output)).items()
        lines = driver.printed.splitlines()
        begun = [line for line in lines if line.startswith(("rows: ", "models: ", "output: "))]
        assert begun == ["rows: 18 in 5 parts", "models: sd", f"output: {output}, png images in Parquet"] * 2
        assert "a new job: no part of it exists yet" in lines
        assert "resuming: 3 of 5 parts already saved, 2 left to generate" in lines
        assert driver.printed.count("18 of 18 rows (100%)") == 2

    def test_shards_of_several_models_are_each_generated_once(self, tmp_path: Path) -> None:
        """Each model has a queue of its own."""
        rows = [row | {"task": ("one", "other")[i % 3 == 0]} for i, row in enumerate(text_rows(18))]
        spec = job_spec(
            write_rows(tmp_path / "rows.parquet", rows),
            tmp_path / "out",
            models={"sd": {"checkpoint": "demo:sd"}, "xl": {"checkpoint": "demo:sd"}},
            routes={
                "one": {"task": "text2img", "model": "sd"},
                "other": {"task": "text2img", "model": "xl"},
            },
            default_route="one",
            batching={"shard_rows": SHARD_ROWS},
        )
        driver = InProcessDriver(spec)

        driver.run()

        assert indices(driver.given) == [0, 1, 2, 3, 4]
        assert sorted(shard.model for shard in driver.given) == ["sd", "sd", "sd", "xl", "xl"]
        assert row_ids(tmp_path / "out") == [row["row_id"] for row in rows]

    def test_a_shard_that_keeps_failing_is_left_out_and_the_job_is_not_done(
        self, tmp_path: Path, output: Path
    ) -> None:
        """As often as `errors.max_attempts` says. The next run makes it."""
        driver = InProcessDriver(spec_of(tmp_path, errors={"max_attempts": 2}))
        driver.before = raise_a_bug

        result = driver.run()

        assert [(lost.shard.index, lost.reason) for lost in result.abandoned] == [(1, "ValueError: a bug")]
        assert indices(driver.given).count(1) == 2
        assert (result.run.rows, result.totals.ok) == (14, 14)
        assert not (output / "_SUCCESS").exists()
        with pytest.raises(BudgetError, match="missing parts: 1"):
            judge(driver.spec.errors, result)

        driver.before = lambda actor, shard: None
        assert driver.run().totals.ok == 18
        assert (output / "_SUCCESS").exists()

    def test_a_shard_that_failed_after_its_part_was_written_is_not_missing(
        self, driver: InProcessDriver, output: Path
    ) -> None:
        """The listing at the end decides, not the answers."""
        driver.after = raise_a_bug

        result = driver.run()

        assert result.abandoned == ()
        assert result.totals.ok == 18
        assert (output / "_SUCCESS").exists()

    def test_in_a_resumed_job_a_row_that_kills_is_found_although_it_is_the_only_one_left(
        self, tmp_path: Path, output: Path
    ) -> None:
        """The parts that are there show that the model works."""
        driver = InProcessDriver(spec_of(tmp_path, 17, errors={"max_attempts": 1}), num_workers=1)
        driver.run()
        parts(output)[4].unlink()
        (output / "_SUCCESS").unlink()
        driver.before = lambda actor, shard: shard.skip or actor.die()

        result = driver.run()

        assert result.abandoned == ()
        assert [row["error_code"] for row in output_rows(output)] == [None] * 16 + ["worker_crash"]

    def test_shards_that_all_kill_their_workers_end_the_job_with_the_reason(
        self, tmp_path: Path, output: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """After some deaths of the first ones, not after those of every shard."""
        driver = InProcessDriver(spec_of(tmp_path, 160, errors={"max_attempts": 1}))
        driver.before = lambda actor, shard: actor.die()

        with pytest.raises(DarkroomError, match="every shard of the model 'sd' takes its worker down"):
            driver.run()

        assert caplog.text.count(" died: ") <= 20
        assert parts(output) == []

    def test_a_driver_that_was_succeeded_does_not_finish_the_job(
        self, driver: InProcessDriver, output: Path
    ) -> None:
        """The other driver does."""

        driver.after = lambda actor, shard: take_over(output)

        with pytest.raises(RefusedError, match="another driver has taken over"):
            driver.run()

        assert len(parts(output)) == 5
        assert not (output / "_SUCCESS").exists()

    def test_a_run_whose_rows_all_fail_is_stopped(self, tmp_path: Path) -> None:
        """By the budget, as soon as it is plain."""
        driver = InProcessDriver(spec_of(tmp_path, 130))
        driver.engine = lambda: NaNEngine(0)

        with pytest.raises(BudgetError, match="rows that were tried all failed"):
            driver.run()

    def test_a_run_whose_rows_may_all_fail_goes_on(self, tmp_path: Path, output: Path) -> None:
        """`errors.max_rate: 1` says so: each row is recorded as failed."""
        driver = InProcessDriver(spec_of(tmp_path, 130, errors={"max_rate": 1}))
        driver.engine = lambda: NaNEngine(0)

        driver.run()

        assert [row["error_code"] for row in output_rows(output)] == ["nonfinite_image"] * 130

    def test_a_changed_spec_is_refused_and_the_record_stays(
        self, driver: InProcessDriver, output: Path, tmp_path: Path
    ) -> None:
        """Half of an output must not be of another job."""
        driver.run()
        record = (output / "_darkroom" / "job.json").read_bytes()
        changed = InProcessDriver(spec_of(tmp_path, seed=5))

        with pytest.raises(RefusedError, match="seed: was 0, is now 5"):
            changed.run()

        assert changed.given == []
        assert (output / "_darkroom" / "job.json").read_bytes() == record

    def test_a_job_of_which_no_row_can_be_generated_is_not_begun(self, tmp_path: Path, output: Path) -> None:
        """Nothing is written."""
        rows = [row | {"task": "paint"} for row in text_rows(3)]
        driver = InProcessDriver(job_spec(write_rows(tmp_path / "rows.parquet", rows), output))

        with pytest.raises(SpecError):
            driver.run()

        assert driver.given == []
        assert not output.exists()

    def test_a_disk_that_is_too_full_is_found_before_the_work(
        self, driver: InProcessDriver, output: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Before the first run, and before one that goes on."""
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
            with pytest.raises(SpecError, match="its disk has 1 byte free"):
                driver.run()
            assert not output.exists()
        driver.run()
        parts(output)[1].unlink()
        driver.given.clear()

        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
        with pytest.raises(SpecError, match="its disk has 1 byte free"):
            driver.run()

        assert driver.given == []

    def test_the_store_is_tried_and_the_job_recorded_before_the_first_part(
        self, s3_faults: FaultProxy, s3_folder: str, tmp_path: Path
    ) -> None:
        """A store that overwrites is found out while nothing can be lost. `_SUCCESS` comes last."""
        uri = upload(open_output(s3_folder).storage, f"{s3_folder}-in.parquet", text_rows(6), tmp_path)
        driver = InProcessDriver(job_spec(Path(uri), Path(s3_folder)), num_workers=1)
        driver.spec = driver.spec.model_copy(
            update={
                "input": driver.spec.input.model_copy(update={"path": uri}),
                "output": driver.spec.output.model_copy(update={"path": s3_folder}),
            }
        )

        driver.run()

        written = [line.split()[1] for line in s3_faults.requests if line.startswith("PUT")]
        names = [name.partition("?")[0].rpartition("/")[2] for name in written if s3_folder[5:] in name]
        first = {name: names.index(name) for name in names}
        probe = next(name for name in names if "probe" in name)
        assert first[probe] < first["job.json"] < first["train-00000-of-00001.parquet"]
        assert names[-2:] == ["_SUCCESS", "driver.json"]


class FailingEngine(NoiseEngine):
    """Rows fail whose number is a multiple of three, with two error codes in turns."""

    def generate(self, rows: Sequence[Any], decoders: Any) -> Any:
        for generated in super().generate(rows, decoders):
            yield self._failed(generated)

    @staticmethod
    def _failed(generated: Any) -> Any:
        sample: Sample = generated.sample
        number = int(sample.opened.row.row_id.removeprefix("row-"))
        if number % 3:
            return generated
        return replace(generated, pixels=None, problem=RowError(CODES[number % 2], "it is three-fold"))


class TestRetry:
    """Rows that failed are generated again."""

    @pytest.fixture
    def failed(self, driver: InProcessDriver) -> InProcessDriver:
        """A job of which rows 0, 6 and 12 failed with one code, and rows 3, 9 and 15 with another."""
        driver.spec = driver.spec.model_copy(
            update={"errors": driver.spec.errors.model_copy(update={"max_rate": 1.0})}
        )
        engine: Engine = FailingEngine(0)
        driver.engine = lambda: engine
        driver.run()
        driver.given.clear()
        driver.engine = lambda: NoiseEngine(0)
        return driver

    def test_only_parts_with_failed_rows_are_replaced(self, failed: InProcessDriver, output: Path) -> None:
        """Rows 0 to 15 are in the first four parts; the last part has none that failed."""
        before = [path.read_bytes() for path in parts(output)]

        result = failed.retry()

        after = [path.read_bytes() for path in parts(output)]
        assert indices(failed.given) == [0, 1, 2, 3]
        assert all(shard.again == () for shard in failed.given)
        assert [old == new for old, new in zip(before, after, strict=True)] == [False] * 4 + [True]
        assert (result.totals.ok, result.totals.failed) == (18, 0)

    def test_only_rows_with_the_code_are_generated_again(self, failed: InProcessDriver, output: Path) -> None:
        """Rows 3, 9 and 15 are in the parts 0, 2 and 3; the other failed rows of these parts stay."""
        result = failed.retry(CODES[1])

        rows = {row["row_id"]: row["error_code"] for row in output_rows(output)}
        assert indices(failed.given) == [0, 2, 3]
        assert all(shard.again == (CODES[1],) for shard in failed.given)
        assert {row_id: code for row_id, code in rows.items() if code} == dict.fromkeys(
            ("row-0000", "row-0006", "row-0012"), CODES[0]
        )
        assert (result.totals.ok, result.totals.failed) == (15, 3)

    def test_a_code_that_no_row_has_is_refused(self, failed: InProcessDriver) -> None:
        """With those that there are."""
        with pytest.raises(SpecError, match=f"the codes of failed rows are {CODES[1]}, {CODES[0]}"):
            failed.retry("out_of_memory")

        assert failed.given == []

    def test_a_retry_without_failed_rows_touches_nothing(self, driver: InProcessDriver, output: Path) -> None:
        """Not even the lease."""
        driver.run()
        driver.given.clear()
        before = written_at(output.rglob("*"))

        result = driver.retry()

        assert driver.given == []
        assert result.totals.ok == 18
        assert written_at(output.rglob("*")) == before

    def test_a_retry_does_not_finish_a_job_that_lacks_a_part(
        self, failed: InProcessDriver, output: Path
    ) -> None:
        """A retry adds no parts."""
        parts(output)[4].unlink()
        (output / "_SUCCESS").unlink()

        result = failed.retry()

        assert len(parts(output)) == 4
        assert not (output / "_SUCCESS").exists()
        with pytest.raises(BudgetError, match=r"^missing parts: 1\. `darkroom run` generates them$"):
            judge(failed.spec.errors, result)

    def test_a_part_that_cannot_be_made_again_is_not_told_as_missing(
        self, failed: InProcessDriver, output: Path
    ) -> None:
        """It stays as it was, and the job stays finished."""
        failed.before = raise_a_bug

        result = failed.retry()

        assert (result.num_missing, result.totals.failed) == (0, 1)
        assert (output / "_SUCCESS").exists()
        with pytest.raises(BudgetError) as caught:
            judge(failed.spec.errors, result)
        assert str(caught.value) == (
            "parts that keep their failed rows: 1. A part is left out after errors.max_attempts (3) "
            "failures, or when its workers were taken away too often. The first is train-00001-of-00005: "
            "ValueError: a bug. `darkroom retry` tries them again"
        )

    def test_a_retry_that_was_succeeded_does_not_finish_the_job(
        self, failed: InProcessDriver, output: Path
    ) -> None:
        """The other driver does."""
        (output / "_SUCCESS").unlink()

        failed.after = lambda actor, shard: take_over(output)

        with pytest.raises(RefusedError, match="another driver has taken over"):
            failed.retry()

        assert not (output / "_SUCCESS").exists()


class Watcher:
    """A lease and a budget that note when they are asked."""

    def __init__(self) -> None:
        self.renewals: list[tuple[int, int]] = []
        """The rows and the images at work of the tally at each renewal."""
        self.ticks: list[Tick] = []

    def update(self, tally: Tally) -> None:
        self.renewals.append((tally.rows, tally.images_unfinished))

    def watch(self, tick: Tick) -> None:
        self.ticks.append(tick)


class SlowWorker:
    """A worker whose shards take ten seconds and have three images at work."""

    def __init__(self, actor: Actor) -> None:
        self._clock = actor.process.clock
        self._shards: list[Shard] = []

    def born(self) -> tuple[str, str]:
        return "node", "host"

    def ready(self) -> bool:
        return True

    def progress(self) -> WorkerProgress:
        unfinished = {shard.index: ShardSnapshot(images=3) for shard in self._shards}
        return WorkerProgress(unfinished=unfinished, heartbeats=int(self._clock.now_s), leaving=False)

    def run(self, shard: Shard) -> ShardReport:
        self._shards.append(shard)
        self._clock.thread.sleep(10)
        self._shards.remove(shard)
        return report_of(shard)


class Stopper(Watcher):
    """Presses Ctrl-C when two shards are done and others are under way."""

    def update(self, tally: Tally) -> None:
        if tally.rows >= 2 * SHARD_ROWS and tally.images_unfinished:
            raise KeyboardInterrupt


def test_an_interrupted_run_tells_what_is_saved_and_what_is_lost(tmp_path: Path) -> None:
    """Rows of parts that were there before count as saved; images of shards under way are lost."""
    plan = plan_for(spec_of(tmp_path))
    dispatcher = Dispatcher({"sd": [*plan.shards()][1:]}, max_attempts=1)
    tally, printed = Tally(rows_total=18, rows_before=SHARD_ROWS), io.StringIO()
    watch = RunWatch(tally=tally, lease=Stopper())  # type: ignore[arg-type]

    def drive() -> None:
        with pytest.raises(KeyboardInterrupt):
            generate_shards(plan, dispatcher, watch, Console(file=printed, width=200), "")

    on_fake_ray(drive, SlowWorker, num_cpus=1)

    assert tally.images_unfinished in {3, 6}
    assert printed.getvalue().splitlines()[-1] == (
        f"interrupted: at least 12 of 18 rows saved, at most {tally.images_unfinished} images of unfinished "
        "parts lost"
    )


def test_each_tick_is_counted_and_watched(tmp_path: Path) -> None:
    """The lease is renewed and the budget asked at each; reports and images under way are in the tally."""
    plan = plan_for(spec_of(tmp_path))
    shards = [*plan.shards()]
    dispatcher = Dispatcher({"sd": shards}, max_attempts=1)
    watcher, tally = Watcher(), Tally(rows_total=18, rows_before=0)
    watch = RunWatch(tally=tally, lease=watcher, budget=watcher)  # type: ignore[arg-type]
    console = Console(file=io.StringIO())

    on_fake_ray(lambda: generate_shards(plan, dispatcher, watch, console, ""), SlowWorker, num_cpus=1)

    assert (tally.rows, tally.images) == (18, 18)
    assert len(watcher.renewals) == len(watcher.ticks) > 40
    assert {images for _, images in watcher.renewals} >= {3, 6}
    assert watcher.renewals[-1][0] == 18

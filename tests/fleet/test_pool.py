"""The real WorkerPool in simulated time: its own bookkeeping, with workers that do what a test says."""

from dataclasses import replace
from itertools import pairwise

import pytest
from ray.exceptions import OutOfMemoryError, RayActorError, RaySystemError, RayTaskError

from jobs.dispatch.dispatcher import SHARDS_IN_FLIGHT
from jobs.dispatch.health import MAX_FAILURES
from jobs.fleet.layout import Layout
from jobs.fleet.pool import GATHER_S, IDLE_S, MAX_FAILED_STARTS, POLL_S, PROGRESS_EVERY_S, SLOW_BIRTH_S
from schemas.errors import DarkroomError, DeviceError, ReclaimedError, SpecError, StorageError
from schemas.job import FailedRows, Job, Shard, ShardReport, ShardSnapshot, WorkerProgress
from tests.support.simulation.pool_run import FOREVER, LONG_S, ROWS, Run, SlowWorker, Worker, dying
from tests.support.simulation.reports import report_of
from tests.support.simulation.simulator import STALL_S, job_of


class NoStorage(Worker):
    """Storage answers nothing that it asks for."""

    def generate(self, shard: Shard) -> ShardReport:
        raise StorageError("the bucket is gone")


class NoMemory(Worker):
    """All rows fail for want of memory, of which its snapshots tell."""

    def generate(self, shard: Shard) -> ShardReport:
        self.work(3)
        return report_of(shard, unforeseen=self.unfinished()[shard.index].unforeseen)

    def unfinished(self) -> dict[int, ShardSnapshot]:
        failed = {"out_of_memory": FailedRows(num_rows=ROWS, message="too large")}
        return {shard.index: ShardSnapshot(unforeseen=failed) for shard in self.shards}


class NoCheckpoint(Worker):
    """Its engine is never ready, because of what the spec names."""

    def ready(self) -> bool:
        raise SpecError("the checkpoint is not there")


def test_every_shard_is_generated_once_and_its_report_handed_on() -> None:
    """Nobody is replaced, and at the end no worker is left."""
    run = Run().run()

    assert run.reported == [0, 1, 2, 3, 4]
    assert len(run.workers) == 2
    assert all(run.workers[i].shards for i in range(2))
    assert not any(actor.process.alive for actor in run.ray.actors)
    assert max(tick.num_workers for _, tick in run.ticks) == 2


def test_the_driver_is_never_deaf_for_longer_than_a_tick() -> None:
    """However long the workers are silent."""
    run = Run(then=SlowWorker).run()

    times = [time_s for time_s, _ in run.ticks]
    assert max(later - earlier for earlier, later in pairwise(times)) <= POLL_S + GATHER_S


def test_ray_is_told_the_size_of_a_worker_and_to_repeat_nothing_itself() -> None:
    """The pool replaces workers, and the dispatcher repeats shards."""
    run = Run()
    run._layout = Layout(num=1, num_gpus=0.5, num_cpus=3)

    run.run()

    options = run.ray.actors[0].options
    assert (options["num_gpus"], options["num_cpus"]) == (0.5, 3)
    assert options["max_restarts"] == options["max_task_retries"] == 0
    assert options["max_concurrency"] == SHARDS_IN_FLIGHT + 1
    assert options["scheduling_strategy"] == "SPREAD"


class TestDeaths:
    """Workers that end."""

    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (RayActorError(error_msg="some context\nThe worker died."), "The worker died."),
            (OutOfMemoryError("too much"), "its machine is out of memory, so Ray ended it"),
        ],
        ids=["died", "killed by Ray for memory"],
    )
    def test_the_shards_of_a_worker_that_dies_are_generated_by_others(
        self, caplog: pytest.LogCaptureFixture, error: Exception, reason: str
    ) -> None:
        """The reason is logged, and the worker gets one successor."""

        run = Run(dying(error)).run()

        assert run.reported == [0, 1, 2, 3, 4]
        assert len(run.workers) == 3
        assert f"worker=worker-0 died: {reason} (machine=machine-0)" in caplog.messages
        assert run.error is None

    def test_the_row_that_kills_its_worker_is_left_out_and_rehearsals_are_no_results(self) -> None:
        """Each shard is reported once, however often it was rehearsed."""

        class Poisoned(Worker):
            def generate(self, shard: Shard) -> ShardReport:
                self.work(1)
                first, end = shard.rehearse or (0, ROWS)
                if shard.index == 1 and 2 in range(first, end) and 2 not in shard.skip:
                    self.actor.die()
                return report_of(shard)

        run = Run(then=Poisoned, max_attempts=1).run()

        assert run.reported == [0, 1, 2, 3, 4]
        assert any(shard.rehearse for shard in run.given)
        assert {shard.skip for shard in run.given if shard.index == 1 and not shard.rehearse} >= {(2,)}

    @pytest.mark.parametrize(
        ("error", "is_to_blame"),
        [
            (RayActorError(error_msg="The worker died."), True),
            (RayActorError(error_msg="gone", preempted=True), False),
            (RayActorError(error_msg="its node was terminated expectedly: draining"), False),
        ],
        ids=["died", "preempted", "told to end"],
    )
    def test_a_machine_that_is_taken_away_does_not_make_its_shards_suspects(
        self, error: Exception, is_to_blame: bool
    ) -> None:
        """With a single attempt, every death that counts is followed by a search for a row."""

        run = Run(dying(error), num=1, shards={"sd": 1}, max_attempts=1).run()

        assert any(shard.rehearse for shard in run.given) is is_to_blame

    def test_an_error_of_ray_itself_ends_the_run(self) -> None:
        """It is neither a shard's nor a worker's."""

        class Broken(Worker):
            def generate(self, shard: Shard) -> ShardReport:
                self.actor.die(RaySystemError(client_exc="the object store is gone"))
                raise AssertionError("its process has ended")

        run = Run(Broken).run()

        assert type(run.error) is DarkroomError
        assert "Ray cannot run the workers" in str(run.error)


class TestStalls:
    """Workers that live and do nothing."""

    class NeverReady(Worker):
        def ready(self) -> bool:
            self.clock.thread.sleep(FOREVER)
            return True

    @pytest.mark.parametrize("answers", [True, False], ids=["answers", "is stopped"])
    def test_a_worker_without_progress_is_replaced_after_the_stall_timeout(self, answers: bool) -> None:
        """Whether it still answers or not; its shards are generated by others."""

        class Stuck(Worker):
            def generate(self, shard: Shard) -> ShardReport:
                self.clock.thread.sleep(FOREVER)
                raise AssertionError("it never wakes")

            def progress(self) -> WorkerProgress:
                if not answers:
                    self.clock.thread.sleep(FOREVER)
                return super().progress()

        run = Run(Stuck).run()

        assert run.reported == [0, 1, 2, 3, 4]
        assert len(run.workers) == 3
        assert STALL_S < run.workers[2].started_s <= STALL_S + 2 * PROGRESS_EVERY_S
        assert run.num_alive_at_start == [0, 1, 1]

    def test_a_row_that_is_never_done_is_found_like_one_that_kills(self) -> None:
        """Its worker is killed when nothing has moved for `errors.stall_timeout_s`."""

        class Endless(Worker):
            def generate(self, shard: Shard) -> ShardReport:
                first, end = shard.rehearse or (0, ROWS)
                if shard.index == 1 and 2 in range(first, end) and 2 not in shard.skip:
                    self.clock.thread.sleep(FOREVER)
                self.work(1)
                return report_of(shard)

        run = Run(then=Endless, max_attempts=1).run()

        assert run.reported == [0, 1, 2, 3, 4]
        assert {shard.skip for shard in run.given if shard.index == 1 and not shard.rehearse} == {(), (2,)}

    def test_a_worker_with_heartbeats_may_take_as_long_as_it_likes(self) -> None:
        """A shard is as long as it is."""
        run = Run(then=SlowWorker, shards={"sd": 3}).run()

        assert run.reported == [0, 1, 2]
        assert len(run.workers) == 2

    def test_time_without_a_shard_does_not_count(self) -> None:
        """A worker that has waited for long gets a shard, and has all its time for that."""

        class Silent(Worker):
            def generate(self, shard: Shard) -> ShardReport:
                self.clock.thread.sleep(0.7 * STALL_S)
                return report_of(shard)

        run = Run(dying(after_s=LONG_S), then=Silent, shards={"sd": 1}).run()

        assert run.reported == [0]
        assert [len(worker.shards) for worker in run.workers] == [1, 1, 0]

    def test_an_answer_gives_the_next_shard_its_full_time(self) -> None:
        """Heartbeats that stood still while a shard was written say nothing about the next one."""

        class Silent(Worker):
            def generate(self, shard: Shard) -> ShardReport:
                self.clock.thread.sleep(0.7 * STALL_S)
                return report_of(shard)

        run = Run(then=Silent, num=1, shards={"sd": 6}).run()

        assert run.reported == [0, 1, 2, 3, 4, 5]
        assert len(run.workers) == 1

    def test_a_worker_that_cannot_build_its_engine_is_replaced(self) -> None:
        """From the moment at which its process exists."""

        run = Run(self.NeverReady, num=1).run()

        assert run.reported == [0, 1, 2, 3, 4]
        assert len(run.workers) == 2
        assert run.workers[1].started_s > STALL_S

    def test_its_successor_has_the_full_time(self) -> None:
        """To build its engine."""

        class LateReady(Worker):
            def ready(self) -> bool:
                self.clock.thread.sleep(STALL_S - 2 * PROGRESS_EVERY_S)
                return True

        run = Run(self.NeverReady, LateReady, num=1).run()

        assert run.reported == [0, 1, 2, 3, 4]
        assert len(run.workers) == 2

    def test_a_worker_for_which_there_is_no_room_yet_is_not_stuck(self) -> None:
        """Ray starts its process when a machine has joined, an hour later if need be."""

        class NoRoom(Worker):
            def born(self) -> tuple[str, str]:
                self.clock.thread.sleep(FOREVER)
                return super().born()

        run = Run(NoRoom, SlowWorker, shards={"sd": 2}).run()

        assert run.reported == [0, 1]
        assert len(run.workers) == 2
        assert max(tick.num_workers for _, tick in run.ticks) == 1

    def test_workers_are_not_blamed_for_the_time_in_which_the_driver_slept(self) -> None:
        """A laptop that was closed for an hour opens to workers that were stopped as well."""
        run = Run(then=SlowWorker, shards={"sd": 2})

        def close_the_laptop(number: int) -> None:
            if number % 50 == 0:
                run.ray.jump_s += 3600

        run.run(close_the_laptop)

        assert run.ray.jump_s > 0
        assert run.reported == [0, 1]
        assert len(run.workers) == 2


class TestStarts:
    """Workers that do not come up, and those that come late."""

    def test_a_machine_on_which_no_worker_starts_does_not_end_a_job_that_runs(self) -> None:
        """It is tried again, and another worker makes everything."""

        class Unfit(Worker):
            def ready(self) -> bool:
                self.clock.thread.sleep(5)
                raise RuntimeError("no CUDA-capable device is detected")

        run = Run(Unfit, SlowWorker, then=Unfit, shards={"sd": 2}).run()

        assert run.error is None
        assert run.reported == [0, 1]
        assert len(run.workers) > MAX_FAILED_STARTS

    @pytest.mark.parametrize("dies", [True, False], ids=["dies", "raises"])
    def test_a_job_for_which_no_worker_starts_ends_with_the_reason(self, dies: bool) -> None:
        """After some tries: the cause may have been the machine."""

        class Unfit(Worker):
            def ready(self) -> bool:
                self.clock.thread.sleep(5)
                if dies:
                    self.actor.die(RayActorError(error_msg="no driver"))
                raise RuntimeError("no driver")

        run = Run(num=1, then=Unfit).run()

        assert type(run.error) is DarkroomError
        assert f"no worker can start: worker-0 died {MAX_FAILED_STARTS} times in a row" in str(run.error)
        assert "no driver" in str(run.error)
        assert len(run.workers) == MAX_FAILED_STARTS

    def test_what_a_start_says_of_the_job_counts_until_the_next_one_fails_without_it(self) -> None:
        """The first worker complains of the job, then fails, and then loads while the other one fails."""

        class Unfit(Worker):
            def ready(self) -> bool:
                raise RuntimeError("no driver")

        class Loading(Worker):
            def ready(self) -> bool:
                self.clock.thread.sleep(STALL_S / 2)
                return True

        run = Run(NoCheckpoint, Unfit, Unfit, Unfit, Loading, then=Unfit).run()

        assert run.error is None
        assert run.reported == [0, 1, 2, 3, 4]
        assert len(run.workers) > 2 + MAX_FAILED_STARTS

    def test_a_worker_that_starts_at_last_begins_to_count_anew(self) -> None:
        """Starts that fail in a row are counted, not those of a whole job."""

        class Unfit(Worker):
            def ready(self) -> bool:
                self.clock.thread.sleep(5)
                raise RuntimeError("not yet")

        tries = [Unfit] * (MAX_FAILED_STARTS - 1)
        run = Run(*tries, dying(), *tries, num=1).run()

        assert run.error is None
        assert run.reported == [0, 1, 2, 3, 4]

    def test_workers_are_added_when_machines_join_as_many_as_have_work(self) -> None:
        """The shards that wait and those that are at work count, not more."""
        run = Run(then=SlowWorker, num=1, shards={"sd": 4})

        def join(number: int) -> None:
            if number == 20:
                run.ray.machines["machine-1"] = {"CPU": 8, "GPU": 0}

        run.run(join)

        assert run.reported == [0, 1, 2, 3]
        # Two shards are with the first worker, and two wait.
        assert len(run.workers) == 3

    def test_a_number_of_workers_that_the_spec_states_stays(self) -> None:
        """Whoever states it pays for no more."""
        job = job_of(ROWS)
        workers = job.spec.workers.model_copy(update={"num": 1})
        fixed = Job(
            spec=job.spec.model_copy(update={"workers": workers}),
            models=job.models,
            columns=job.columns,
            schema=job.schema,
        )
        run = Run(then=SlowWorker, num=1, job=fixed)
        run.ray.machines["machine-1"] = {"CPU": 8, "GPU": 0}

        run.run()

        assert len(run.workers) == 1

    def test_workers_for_which_nothing_is_left_end(self, caplog: pytest.LogCaptureFixture) -> None:
        """Their machines can end too. Two stay, of which one can check the other; the last shard is slow."""

        class Leisurely(Worker):
            def generate(self, shard: Shard) -> ShardReport:
                self.work((20 if shard.index == 0 else 2) * IDLE_S)
                return report_of(shard)

        run = Run(then=Leisurely, num=4, shards={"sd": 8}).run()

        first_report_s = min(time_s for time_s, tick in run.ticks if tick.reports)
        last_with_all_s = max(time_s for time_s, tick in run.ticks if tick.num_workers == 4)
        assert run.reported == [*range(8)]
        assert last_with_all_s > first_report_s + IDLE_S / 2
        assert run.ticks[-2][1].num_workers == 2
        assert "workers_ended=1: no part is left for them" in caplog.messages

    def test_of_the_workers_that_stay_one_is_on_another_machine(self) -> None:
        """What a machine alone says is not believed."""
        run = Run(SlowWorker, Worker, SlowWorker, num=4, shards={"sd": 8}, machines=2)
        staying: list[set[str]] = []
        run.run(lambda _: staying.append({actor.machine for actor in run.ray.actors if actor.process.alive}))

        assert [tick.num_workers for _, tick in run.ticks][-2] == 3
        assert staying[-2] == {"machine-0", "machine-1"}

    def test_no_machine_is_waited_for_that_no_shard_needs(self) -> None:
        """A worker that waits for room would make the cluster start a machine."""

        class NeverBorn(Worker):
            def born(self) -> tuple[str, str]:
                self.clock.thread.sleep(FOREVER)
                raise AssertionError("its process never starts")

        run = Run(SlowWorker, NeverBorn, NeverBorn, num=3, shards={"sd": 3})
        waiting: list[int] = []
        run.run(lambda _: waiting.append(sum(actor.process.alive for actor in run.ray.actors)))

        assert run.reported == [0, 1, 2]
        assert (max(waiting), waiting[-2]) == (3, 1)

    def test_gpus_that_join_a_cluster_without_any_are_used_and_its_cpus_no_more(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Where the spec leaves open what to use. The shards of the old workers go to the new ones."""
        run = Run(SlowWorker, SlowWorker, shards={"sd": 6})

        def join(number: int) -> None:
            if number == 20:
                run.ray.machines["machine-1"] = {"CPU": 8, "GPU": 4}

        run.run(join)

        assert run.reported == [*range(6)]
        assert run.error is None
        options = [actor.options for actor in run.ray.actors]
        assert [(option["num_gpus"], option["num_cpus"]) for option in options] == [(0, 1)] * 2 + [(1, 2)] * 4
        assert run.clock.now_s < LONG_S
        assert "worker=worker-0 was taken away: the cluster has GPUs now" in caplog.text


def test_no_worker_is_placed_on_the_head_that_a_layout_names() -> None:
    """Nor on a machine that is left out."""
    run = Run(shards={"sd": 8}, machines=2)
    run._layout = Layout(num=1, num_gpus=0, num_cpus=1, head="machine-0")

    run.run()

    assert {actor.machine for actor in run.ray.actors} == {"machine-1"}


class TestLeaving:
    """Workers that are told to end, and give back what they have not begun."""

    def test_what_a_leaving_worker_gives_back_goes_to_another_and_nothing_is_blamed(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It finishes the shard that it is at, gets no more, and is replaced then."""

        class Leaving(Worker):
            def generate(self, shard: Shard) -> ShardReport:
                if len(self.shards) > 1:
                    raise ReclaimedError(f"{shard.name} was not begun")
                self.work(10)
                return report_of(shard)

        run = Run(Leaving, num=1, max_attempts=1).run()

        assert run.reported == [0, 1, 2, 3, 4]
        assert [len(worker.shards) for worker in run.workers] == [2, 4]
        assert run.workers[1].started_s == 10
        assert not any(shard.rehearse for shard in run.given)
        assert (
            "worker=worker-0 was taken away: its process was told to end (SIGTERM) (machine=machine-0)"
            in caplog.messages
        )

    def test_a_worker_that_says_that_it_leaves_gets_no_more_shards(self) -> None:
        """It says so when it is asked for its progress."""

        class Leaving(Worker):
            def generate(self, shard: Shard) -> ShardReport:
                self.leaving = True
                self.work(10)
                return report_of(shard)

        run = Run(Leaving, num=1).run()

        assert run.reported == [0, 1, 2, 3, 4]
        assert [len(worker.shards) for worker in run.workers] == [2, 3]

    def test_a_worker_that_is_told_to_end_before_it_is_ready_is_replaced(self) -> None:
        """As if it had never been there: it does not count as a start that failed."""

        class Reclaimed(Worker):
            def ready(self) -> bool:
                self.clock.thread.sleep(5)
                raise ReclaimedError("asked to end before it was ready")

        run = Run(*[Reclaimed] * (2 * MAX_FAILED_STARTS), num=1).run()

        assert run.error is None
        assert run.reported == [0, 1, 2, 3, 4]


class TestHealth:
    """Workers and machines that fail where others succeed."""

    class Failing(Worker):
        def generate(self, shard: Shard) -> ShardReport:
            self.work(1)
            raise RuntimeError("cuBLAS is not initialised")

    def test_a_worker_that_fails_alone_is_taken_out_of_service(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Its process is ended and has no successor; another one on its machine makes everything."""
        run = Run(self.Failing, num=2, shards={"sd": 30}).run()

        assert run.reported == [*range(30)]
        assert len(run.workers) == 2
        assert len(run.workers[0].shards) <= MAX_FAILURES + 1
        assert "worker=worker-0 is out of service: 3 shards or starts in a row failed" in caplog.text
        assert run.ticks[-1][1].num_workers == 1

    def test_a_worker_that_also_succeeds_stays_in_service(self) -> None:
        """Only failures in a row count."""

        class FailingNowAndThen(Worker):
            num_tried = 0

            def generate(self, shard: Shard) -> ShardReport:
                self.work(1)
                self.num_tried += 1
                if self.num_tried % 3:
                    raise RuntimeError("now and then")
                return report_of(shard)

        run = Run(FailingNowAndThen, num=2, shards={"sd": 30}).run()

        assert run.reported == [*range(30)]
        assert len(run.workers[0].shards) > 2 * MAX_FAILURES

    def test_the_last_worker_stays_in_service(self) -> None:
        """The job ends as it does on one machine alone: with what has failed."""
        run = Run(then=self.Failing, num=1).run()

        assert run.error is None
        assert [lost.shard.index for lost in run.dispatcher.abandoned] == [0, 1, 2, 3, 4]

    def test_on_a_machine_that_is_left_out_no_worker_stays_and_none_is_started(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Its workers' successors are started elsewhere, if there is room."""

        class OnTwoMachines(Worker):
            def generate(self, shard: Shard) -> ShardReport:
                if self.actor.machine == "machine-0":
                    # When the machine is judged, after two seconds, none of its workers has failed thrice.
                    self.clock.thread.sleep(1.5)
                    raise RuntimeError("no driver")
                return super().generate(shard)

        run = Run(then=OnTwoMachines, num=8, machines=2, shards={"sd": 80}).run()

        assert run.reported == [*range(80)]
        machines = [actor.machine for actor in run.ray.actors]
        assert machines[:8].count("machine-0") == 4
        assert machines[8:] == ["machine-1"] * 4
        assert "machine=machine-0 is left out: 3 shards or starts in a row failed there" in caplog.text

    def test_no_shard_is_left_out_because_a_broken_machine_comes_first(self) -> None:
        """What fails there waits for the machine whose workers are still loading."""

        class BrokenOrLate(Worker):
            def ready(self) -> bool:
                if self.actor.machine == "machine-1":
                    self.work(15)
                return True

            def generate(self, shard: Shard) -> ShardReport:
                if self.actor.machine == "machine-0":
                    raise RuntimeError("no driver")
                return super().generate(shard)

        run = Run(then=BrokenOrLate, num=2, machines=2, max_attempts=1).run()

        assert run.dispatcher.abandoned == []
        assert run.reported == [0, 1, 2, 3, 4]

    def test_a_worker_that_cannot_start_waits_longer_each_time(self) -> None:
        """It may be a driver that is being installed, or a Hub that is down."""

        class Unfit(Worker):
            def ready(self) -> bool:
                raise RuntimeError("not yet")

        run = Run(*[Unfit] * 4, num=1).run()

        starts_s = [worker.started_s for worker in run.workers]
        waits_s = [later - earlier for earlier, later in pairwise(starts_s)]
        assert waits_s == pytest.approx([0.5, 1, 2, 4], abs=POLL_S)

    def test_all_answers_that_are_ready_are_taken_at_once(self) -> None:
        """With a thousand workers, the last of them would otherwise wait for minutes."""
        run = Run(num=8, shards={"sd": 32}).run()

        assert max(len(tick.reports) for _, tick in run.ticks) >= 8


class TestErrors:
    """Exceptions of a worker's methods."""

    def test_a_shard_that_fails_is_tried_again_and_its_worker_stays(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """As often as the spec allows, and then it is left out with the error."""

        class Failing(Worker):
            def generate(self, shard: Shard) -> ShardReport:
                self.work(1)
                if shard.index == 3:
                    raise ValueError("a bug")
                return report_of(shard)

        run = Run(then=Failing, max_attempts=2).run()

        assert run.reported == [0, 1, 2, 4]
        assert len(run.workers) == 2
        assert [shard.index for shard in run.given].count(3) == 2
        assert [(lost.shard.index, lost.reason) for lost in run.dispatcher.abandoned] == [
            (3, "ValueError: a bug")
        ]

    def test_a_worker_whose_device_is_broken_is_replaced_as_a_dead_one(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is alive and answers, and would fail with every shard that it is given."""

        class Broken(Worker):
            def generate(self, shard: Shard) -> ShardReport:
                self.work(1)
                raise DeviceError("CUDA error: unspecified launch failure")

        run = Run(Broken, max_attempts=2).run()

        assert run.reported == [0, 1, 2, 3, 4]
        assert not run.ray.actors[0].process.alive
        assert len(run.workers[0].shards) <= SHARDS_IN_FLIGHT
        assert "died: it can no longer use its device: CUDA error: unspecified launch failure" in caplog.text

    @pytest.mark.parametrize("num", [1, 2, 8])
    def test_an_error_of_the_storage_that_several_workers_meet_ends_the_run_as_what_it_is(
        self, num: int
    ) -> None:
        """One of them alone may be in trouble itself; where there is only one, it is believed."""
        run = Run(then=NoStorage, num=num).run()

        assert type(run.error) is StorageError
        assert all(len(worker.shards) <= 2 * SHARDS_IN_FLIGHT for worker in run.workers)
        assert not any(actor.process.alive for actor in run.ray.actors)

    def test_an_error_of_the_storage_that_one_worker_meets_costs_nothing(self) -> None:
        """Its shards go to the others."""
        run = Run(NoStorage, shards={"sd": 20}).run()

        assert run.error is None
        assert run.reported == [*range(20)]

    @pytest.mark.parametrize("num", [1, 3])
    def test_an_error_of_the_job_that_every_worker_meets_at_its_start_ends_the_run(self, num: int) -> None:
        """At once: to start it again would change nothing, as it has been tried for long already."""
        run = Run(then=NoCheckpoint, num=num).run()

        assert type(run.error) is SpecError
        assert len(run.workers) == num

    def test_an_error_of_the_job_that_one_worker_meets_at_its_start_costs_nothing(self) -> None:
        """It may be the only one without a folder that the others share."""
        run = Run(NoCheckpoint, shards={"sd": 20}).run()

        assert run.error is None
        assert run.reported == [*range(20)]

    def test_rows_that_one_worker_could_not_generate_are_counted_once(self) -> None:
        """As the second worker reports them, and neither in the progress before that."""
        run = Run(NoMemory, shards={"sd": 20}).run()

        assert run.reported == [*range(20)]
        for _, tick in run.ticks:
            assert not any(report.unforeseen for report in tick.reports)
            assert not any(snapshot.unforeseen for snapshot in tick.unfinished)

    def test_rows_that_the_only_worker_cannot_generate_are_shown_at_once(self) -> None:
        """Nobody else can be asked, and a hopeless job should stop early."""
        run = Run(then=NoMemory, num=1, shards={"sd": 2}).run()

        assert sum(len(tick.reports) for _, tick in run.ticks) == 2
        assert all(report.unforeseen for _, tick in run.ticks for report in tick.reports)
        assert any(snapshot.unforeseen for _, tick in run.ticks for snapshot in tick.unfinished)

    def test_a_worker_that_never_starts_is_not_waited_for_without_end(self) -> None:
        """The only shard fails, and there is no other worker that could try it."""

        class Raising(Worker):
            def generate(self, shard: Shard) -> ShardReport:
                raise RuntimeError("not here")

        class NoStart(Worker):
            def ready(self) -> bool:
                raise RuntimeError("no driver")

        run = Run(Raising, then=NoStart, shards={"sd": 1}).run()

        assert run.error is None
        assert [lost.reason for lost in run.dispatcher.abandoned] == ["RuntimeError: not here"]

    def test_a_bug_in_what_a_worker_answers_about_itself_is_not_hidden(self) -> None:
        """It is nobody's shard that fails."""

        class Confused(SlowWorker):
            def progress(self) -> WorkerProgress:
                raise ValueError("a bug")

        run = Run(Confused).run()

        assert isinstance(run.error, RayTaskError)
        assert isinstance(run.error, ValueError)

    def test_ctrl_c_ends_all_workers(self) -> None:
        """At once: a part is committed whole or not at all."""

        def press_ctrl_c(number: int) -> None:
            if number == 10:
                raise KeyboardInterrupt

        run = Run(then=SlowWorker).run(press_ctrl_c)

        assert isinstance(run.error, KeyboardInterrupt)
        assert run.clock.now_s < LONG_S
        assert not any(actor.process.alive for actor in run.ray.actors)


def test_workers_that_find_no_room_say_what_is_in_use() -> None:
    """Those that only start do not."""

    class NeverBorn(Worker):
        def born(self) -> tuple[str, str]:
            self.clock.thread.sleep(FOREVER)
            raise AssertionError("its process never starts")

    waiting = Run(Worker, NeverBorn, shards={"sd": 20}).run()
    starting = Run(shards={"sd": 20}).run()

    assert "2 of 2 CPUs in use" in {tick.short_of for _, tick in waiting.ticks}
    assert {tick.short_of for time_s, tick in waiting.ticks if time_s < SLOW_BIRTH_S} == {""}
    assert {tick.short_of for _, tick in starting.ticks} == {""}


def test_steps_of_a_worker_that_died_still_count() -> None:
    """Its successor begins at zero; what is shown never falls."""

    class Stepping(Worker):
        def progress(self) -> WorkerProgress:
            return replace(super().progress(), phase="denoising", num_steps=self.heartbeats)

        def generate(self, shard: Shard) -> ShardReport:
            self.work(10)
            return report_of(shard)

    class Dying(Stepping):
        def generate(self, shard: Shard) -> ShardReport:
            self.work(10)
            self.actor.die()
            raise AssertionError("its process has ended")

    run = Run(Dying, then=Stepping).run()
    steps = [tick.num_steps for _, tick in run.ticks]

    assert steps == sorted(steps)
    assert steps[-1] > max(worker.heartbeats for worker in run.workers)
    assert {phase for _, tick in run.ticks for phase in tick.phases} == {"denoising"}
    assert run.ticks[-1][1].phases == {}


@pytest.mark.parametrize(("num", "text"), [(1, "1 worker waits for"), (2, "2 workers wait for")])
def test_what_workers_wait_for_is_told_as_long_as_they_wait(num: int, text: str) -> None:
    """With their number, and one of the requests. Another worker waits for nothing."""

    class Waiting(Worker):
        def progress(self) -> WorkerProgress:
            waits_for = "list s3://b: 503" if 10 < self.clock.now_s < 30 else ""
            return replace(super().progress(), waits_for=waits_for)

        def generate(self, shard: Shard) -> ShardReport:
            self.work(60)
            return report_of(shard)

    run = Run(Worker, then=Waiting, num=1 + num, shards={"sd": 9}).run()
    told = [(time_s, tick.waits_for) for time_s, tick in run.ticks]

    assert {words for _, words in told} == {"", f"{text} list s3://b: 503"}
    assert {words for time_s, words in told if not 10 < time_s < 30 + 2 * PROGRESS_EVERY_S} == {""}


class TestProgress:
    """What the driver shows while shards are under way."""

    class Counting(Worker):
        """A shard takes three seconds, and its snapshot has a hundred images and its index."""

        def generate(self, shard: Shard) -> ShardReport:
            self.work(3)
            return report_of(shard)

        def progress(self) -> WorkerProgress:
            progress = super().progress()
            # The answer is under way while the shard ends.
            self.clock.thread.sleep(1.5)
            return progress

        def unfinished(self) -> dict[int, ShardSnapshot]:
            return {shard.index: ShardSnapshot(images=100 + shard.index) for shard in self.shards[-2:]}

    def test_a_shard_that_is_reported_no_longer_counts_as_unfinished(self) -> None:
        """Not even if an answer about it arrives late: its images would be counted twice."""
        run = Run(then=self.Counting, num=1).run()

        reported: set[int] = set()
        seen: set[int] = set()
        for _, tick in run.ticks:
            reported |= {report.index for report in tick.reports}
            unfinished = {snapshot.images - 100 for snapshot in tick.unfinished}
            assert not unfinished & reported
            seen |= unfinished
        assert len(seen) > 1

    def test_images_that_died_with_their_worker_do_not_count(self) -> None:
        """Its shards begin anew."""

        class Dying(TestProgress.Counting):
            def generate(self, shard: Shard) -> ShardReport:
                self.work(8)
                self.actor.die()
                raise AssertionError("its process has ended")

        class NeverReady(Worker):
            def ready(self) -> bool:
                self.clock.thread.sleep(10)
                raise ReclaimedError("asked to end")

        run = Run(Dying, NeverReady, num=1).run()

        unfinished = {time_s: len(tick.unfinished) for time_s, tick in run.ticks}
        assert max(count for time_s, count in unfinished.items() if time_s < 8) == 2
        assert {count for time_s, count in unfinished.items() if 8 < time_s < 18} == {0}

    def test_a_worker_is_asked_again_only_when_it_has_answered(self) -> None:
        """A worker that is busy for a minute would be buried in questions."""

        class Slow(SlowWorker):
            num_asked = 0

            def progress(self) -> WorkerProgress:
                self.num_asked += 1
                self.clock.thread.sleep(10)
                return super().progress()

        run = Run(then=Slow, num=1, shards={"sd": 1}).run()

        assert LONG_S / 12 - 1 <= run.workers[0].num_asked <= LONG_S / 10 + 1

    def test_a_rehearsal_has_no_images_to_count(self) -> None:
        """None of them will be in a part."""

        class Rehearsing(TestProgress.Counting):
            def generate(self, shard: Shard) -> ShardReport:
                if shard.index == 0 and not shard.rehearse and not shard.skip:
                    self.actor.die()
                self.work(5)
                return report_of(shard)

        run = Run(then=Rehearsing, num=1, shards={"sd": 2}, max_attempts=1)
        during = set[bool]()

        def note(number: int) -> None:
            at = [shard for worker in run.workers[-1:] for shard in worker.shards[-1:]]
            if at and at[0].rehearse and at[0].index not in run.reported:
                during.update(bool(snapshot.images == 100) for snapshot in run.ticks[-1][1].unfinished)

        run.run(note)

        assert any(shard.rehearse for shard in run.given)
        assert True not in during

    def test_a_worker_gets_shards_of_a_model_that_it_has_loaded(self) -> None:
        """It says in its reports which ones these are, the latest last."""

        class WithTwo(Worker):
            def generate(self, shard: Shard) -> ShardReport:
                self.work(1)
                return report_of(shard, models_loaded=("sd", "xl"))

        run = Run(then=WithTwo, num=1, shards={"sd": 1, "other": 3, "xl": 4}).run()

        assert [shard.model for shard in run.given] == ["xl"] * 4 + ["sd"] + ["other"] * 3

    def test_a_workers_successor_has_loaded_nothing(self) -> None:
        """It gets a shard of the model of which most shards wait."""

        class Dying(Worker):
            def generate(self, shard: Shard) -> ShardReport:
                self.work(1)
                if len(self.shards) > 4:
                    self.actor.die()
                return report_of(shard, models_loaded=("sd", "xl"))

        run = Run(Dying, num=1, shards={"sd": 2, "other": 3, "xl": 4}).run()

        assert [shard.model for shard in run.workers[0].shards] == ["xl"] * 4 + ["sd"] * 2
        assert run.workers[1].shards[0].model == "other"

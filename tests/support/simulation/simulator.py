"""Simulations of whole jobs, without Ray, disks or waiting.

The plan, the record, the layout, the pool, the dispatcher, the search for poison, the listing and the commit
are darkroom's own code. The store, Ray, the workers, the clock and all chance are simulated. The seed decides
everything.
"""

from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from itertools import count
from random import Random
from unittest.mock import patch

import pyarrow as pa
from ray.exceptions import RayActorError

from actors.parts.commit import PartIdentity, commit_part, probe
from actors.storage.objects import StoredObject
from actors.storage.output import Output
from actors.storage.uris import join
from jobs import retry, run
from jobs.dispatch.dispatcher import Dispatcher
from jobs.dispatch.shard_record import Death
from jobs.fleet import pool
from jobs.fleet.layout import lay_out
from jobs.output.job_record import claim, read_record
from jobs.output.parts import list_parts, still_missing
from jobs.output.resumption import plan_of
from jobs.planning.plan import Plan
from jobs.planning.row_scan import Findings
from jobs.reports.success import is_finished
from jobs.survey.survey import Survey, SurveyedFile
from schemas.columns.input_columns import ColumnMap
from schemas.errors import DarkroomError, ReclaimedError, RefusedError, StorageError
from schemas.job import NO_MODEL, FailedRows, Job, PlannedFile, Shard, ShardReport, WorkerProgress
from schemas.output_layout import MANIFEST, SUCCESS, ShardNames
from schemas.spec.job_spec import JobSpec
from schemas.wording.amounts import counted
from tests.support.checkpoints import model_card
from tests.support.simulation.fake_ray import Actor, FakeRay, installed
from tests.support.simulation.reference_model import (
    CRASH,
    NO_MEMORY,
    OK,
    Nature,
    Outcomes,
    ReferenceModel,
    decode,
    encode,
    row_name,
)
from tests.support.simulation.reports import report_of
from tests.support.simulation.simulated_store import Faults, SimulatedStore
from tests.support.simulation.simulated_time import Clock, Process, ViolationError

OUTPUT = "s3://bucket/out"
STALL_S = 20.0
"""How long a driver waits for a sign of life from a worker."""
MODELS = ("sd", "xl")
MAX_DRIVERS = 3


@lru_cache
def job_of(shard_rows: int) -> Job:
    """A job with two models."""
    spec = JobSpec.model_validate(
        {
            "version": 1,
            "name": "simulated",
            "input": {"path": "s3://bucket/in"},
            "models": {name: {"checkpoint": f"demo:{name}"} for name in MODELS},
            "routes": {"text2img": {"model": "sd"}},
            "default_route": "text2img",
            "output": {"path": OUTPUT},
            "batching": {"shard_rows": shard_rows},
            "errors": {"stall_timeout_s": STALL_S, "storage_deadline_s": STALL_S / 2},
        }
    )
    cards = {name: model_card(checkpoint=f"demo:{name}") for name in MODELS}
    columns = ColumnMap(fields={"prompt": "prompt"}, recognised={}, keep={}, id_type=pa.string())
    return Job(spec=spec, models=cards, columns=columns, schema=b"")


@lru_cache
def fingerprint_of(shard_rows: int) -> str:
    """The fingerprint of the job with this shard size."""
    return job_of(shard_rows).fingerprint


class Simulation:
    """One job, from its first driver to the check of its output."""

    def __init__(self, seed: int, *, tell: Callable[[str], None] | None = None) -> None:
        self.random = Random(seed)
        self.clock = Clock()
        self._tell = tell
        self._commits = count()
        self._names = count()
        self.faults = self._draw_faults()
        self.plan = self._draw_plan()
        self.job = fingerprint_of(self.plan.job.spec.batching.shard_rows)
        shards = {part_uri(shard): shard for shard in self.plan.shards()}
        self.natures = self._draw_natures([*shards.values()])
        self.model = ReferenceModel(OUTPUT, self.job, shards, self.natures)
        self.store = self.open_store()
        self.drivers: list[Driver] = []
        self._ray = self._start_ray()
        self.calm = False
        """Whether faults no longer happen."""
        self._ended = False

    @property
    def seen(self) -> Counter[str]:
        """How often each kind of event happened."""
        return self.model.seen + self.store.seen

    def open_store(self) -> SimulatedStore:
        """A new store, whose writes the reference model checks."""
        return SimulatedStore(self.clock, self.random, self.faults, self.model.written)

    def _start_ray(self) -> FakeRay:
        """One or two machines for some workers; it does not always obey and brings news of deaths late."""
        random, faults = self.random, self.faults
        ray = FakeRay(self.clock, self._build_worker, num_cpus=random.randint(1, 3))
        if random.random() < 0.5:
            ray.machines["machine-1"] = {"CPU": 1, "GPU": 0}
        ray.name = lambda: self.name("worker")
        ray.news_s = random.random
        ray.error_of_death = lambda: RayActorError(
            error_msg="The actor died.", preempted=random.random() < faults.preempted
        )
        ray.obeys = lambda: random.random() >= faults.immortal
        # Ten thousand simulations would otherwise consist of waiting for nothing, a quarter of a second each.
        ray.shortest_wait_s = pool.PROGRESS_EVERY_S
        return ray

    def _build_worker(self, actor: Actor) -> "Worker":
        process = self.clock.thread.process
        return Worker(actor, self, next(driver for driver in self.drivers if driver.process is process))

    def _draw_faults(self) -> Faults:
        """Random faults: each kind is absent, rare or frequent, depending on the seed."""
        draw = self.random.choice
        return Faults(
            slow_s=draw((0.2, 0.2, 0.5, 3.0)),
            crash=draw((0, 0.003, 0.01, 0.03)),
            cut_off=draw((0, 0.005, 0.02)),
            preempted=draw((0, 0.5)),
            reclaimed=draw((0, 0, 0.05)),
            refused=draw((0, 0.05, 0.3)),
            lost=draw((0, 0.05, 0.3)),
            late=draw((0, 0, 0.05, 0.3)),
            stale=draw((0, 0.3, 1)),
            hang=draw((0, 0.005, 0.02)),
            immortal=draw((0, 0.5, 1)),
            no_memory=draw((0, 0.1, 0.5)),
            fails=draw((0, 0, 0.1)),
        )

    def _draw_plan(self) -> Plan:
        random = self.random
        files = []
        for name in ("a", "b")[: random.randint(1, 2)]:
            rows = {model: random.randint(0, 8) for model in (*MODELS, NO_MODEL)}
            # Rows without a model are rare; the first model has at least one row.
            rows |= {MODELS[0]: random.randint(1, 8), NO_MODEL: random.choice((0, 0, 0, 2))}
            files.append(
                PlannedFile(
                    uri=f"s3://bucket/in/{name}.parquet",
                    size_bytes=1,
                    etag="e",
                    num_rows=sum(rows.values()),
                    rows_by_model={model: num for model, num in rows.items() if num},
                )
            )
        return Plan(job=job_of(random.randint(1, 6)), files=tuple(files))

    def _draw_natures(self, shards: list[Shard]) -> dict[str, Nature]:
        natures = {
            row_name(shard, row): Nature.HEALTHY if shard.model else Nature.BAD
            for shard in shards
            for row in range(shard.num_rows)
        }
        rows = [row for row, nature in natures.items() if nature is Nature.HEALTHY]
        for nature, num in ((Nature.BAD, self.random.randint(0, 3)), (Nature.POISON, self._draw_poison())):
            natures |= dict.fromkeys(self.random.sample(rows, min(num, len(rows))), nature)
        return natures

    def _draw_poison(self) -> int:
        return self.random.choice((0, 0, 0, 1, 1, 2, 3))

    def simulate(self) -> "Simulation":
        """Run the simulation, and return it; ViolationError if the protocol is broken."""
        Process(self.clock, "operator").start(self._operate)
        with installed(self._ray), patch.object(pool.logger, "disabled", self._tell is None):
            self.clock.run()
        if not self._ended:
            raise ViolationError("the simulation stops before the job's end")
        return self

    @property
    def drivers_at_work(self) -> list["Driver"]:
        """The drivers that are alive and have not ended."""
        return [driver for driver in self.drivers if driver.process.alive and driver.end is None]

    def _operate(self) -> None:
        """Start drivers, sometimes too many, as an operator who never reads their output."""
        thread, random = self.clock.thread, self.random
        for _ in range(random.randint(1, 2)):
            self._launch(Driver)
        stop_s = random.uniform(5, 40)
        while self.clock.now_s < stop_s:
            thread.sleep(random.uniform(0.5, 20))
            if len(self.drivers_at_work) < random.randint(1, MAX_DRIVERS):
                kind = random.choice((Driver, RetryDriver))
                # Two drivers of one kind often write the same parts.
                for _ in range(random.randint(1, 2)):
                    self._launch(kind)
        self.log("no more faults")
        self.calm = True
        for name in Faults.__slots__:
            setattr(self.faults, name, 0.0)
        self._wait_for_drivers()
        self._run_to_the_end()
        # A thread that hung until now goes on, and may interfere with a driver's parts.
        thread.sleep(300)
        self._run_to_the_end()
        self.model.check_end()
        self._ended = True

    def _launch(self, kind: "type[Driver]") -> "Driver":
        driver = kind(self)
        self.drivers.append(driver)
        self.log("%s starts", driver.process.name)
        driver.process.start(driver.main)
        return driver

    def _run_to_the_end(self) -> None:
        """Run a driver and a retry driver without faults, and check how they end."""
        for kind in (Driver, RetryDriver):
            driver = self._launch(kind)
            self._wait_for_drivers()
            if driver.end != "done":
                raise ViolationError(f"{driver.process.name} had no faults, and ended with {driver.end!r}")
            for shard in driver.abandoned:
                if not self.model.may_be_abandoned(shard):
                    raise ViolationError(f"{shard.name} was abandoned, although there were no faults")
            if kind is Driver and not driver.abandoned and not self.store.now(join(OUTPUT, SUCCESS)):
                raise ViolationError(f"{driver.process.name} is done, but there is no {SUCCESS}")

    def _wait_for_drivers(self) -> None:
        while self.drivers_at_work:
            self.clock.thread.sleep(5)

    def name(self, kind: str) -> str:
        """A new name for a process of this kind."""
        return f"{kind}-{next(self._names)}"

    def log(self, message: str, *arguments: object) -> None:
        """Print a line if one seed is replayed."""
        if self._tell:
            thread = self.clock.running
            name = thread.process.name if thread else "-"
            self._tell(f"{self.clock.now_s:8.2f} {name:12} {message % arguments}")

    def commit(self, shard: Shard, data: bytes, replaces: str | None, driver: "Driver") -> bool:
        """Commit a part as a worker does, and let the reference model check the answer.

        Returns whether the part is the committed one.
        """
        uri, thread = part_uri(shard), self.clock.thread
        number = thread.commit = next(self._commits)
        committed = self.commit_part(shard, data, f"{number:032x}", replaces, driver)
        took_effect = number in self.store.effects
        self.log("%s committed=%s took_effect=%s", shard.name, committed, took_effect)
        if not (driver.process.alive and thread.process.heard):
            self.model.seen["zombie's commit"] += 1
        self.model.answered(uri, number, committed=committed, took_effect=took_effect)
        thread.commit = None
        return committed

    def commit_part(
        self, shard: Shard, data: bytes, attempt: str, replaces: str | None, driver: "Driver"
    ) -> bool:
        """Commit a part with darkroom's `commit_part`; simulations of bugs replace this method."""
        return commit_part(
            self.store,
            part_uri(shard),
            data,
            PartIdentity(job=self.job, shard=shard.name),
            attempt=attempt,
            replaces=replaces,
        )

    def committed_part(self, uri: str) -> tuple[str, bytes]:
        """The part's etag and content, requested in the same order as in darkroom's worker."""
        stored = self.store.stat(uri)
        if stored is None:
            raise RefusedError(f"{uri}, of which rows should be generated again, no longer exists")
        return stored.etag, self.store.read(uri)


def part_uri(shard: Shard) -> str:
    """The URI of the shard's part."""
    return join(OUTPUT, "data", f"{shard.name}.parquet")


class Worker:
    """A worker's process, which runs up to two shards at a time, one of which uses the device."""

    def __init__(self, actor: Actor, simulation: Simulation, driver: "Driver") -> None:
        self._actor = actor
        self._process = actor.process
        self._simulation = simulation
        self._driver = driver
        self._device_busy = False
        self._leaving = False
        self._heartbeats = 0

    def born(self) -> tuple[str, str]:
        """Its machine."""
        return self._actor.machine, self._actor.machine

    def ready(self) -> bool:
        """True once the worker has started."""
        self._simulation.store.pause()
        return True

    def progress(self) -> WorkerProgress:
        """Its heartbeats, and whether it was told to end."""
        return WorkerProgress(unfinished={}, heartbeats=self._heartbeats, leaving=self._leaving)

    def run(self, shard: Shard) -> ShardReport:
        """Generate and commit a shard."""
        simulation = self._simulation
        simulation.log("gets %s, rehearse=%s skip=%s", shard.name, shard.rehearse, shard.skip)
        replaces, unchanged = None, Outcomes()
        if shard.again is not None:
            replaces, data = simulation.committed_part(part_uri(shard))
            unchanged = {
                row: code for row, code in decode(data).items() if not _is_retried(code, shard.again)
            }
        self._pause()
        while self._device_busy:
            simulation.clock.thread.sleep(0.5)
        if self._leaving:
            raise ReclaimedError(f"{shard.name} was not begun")
        self._device_busy = True
        outcomes = self._generate(shard, unchanged)
        self._device_busy = False
        self._pause()
        committed = shard.rehearse is None and simulation.commit(
            shard, encode(outcomes), replaces, self._driver
        )
        num_failed = sum(code == NO_MEMORY for row, code in outcomes.items() if row not in unchanged)
        failed = {NO_MEMORY: FailedRows(num_rows=num_failed, message="")} if num_failed else {}
        return report_of(shard, committed=committed, unforeseen=failed)

    def _pause(self) -> None:
        self._heartbeats += 1
        self._simulation.store.pause()

    def _generate(self, shard: Shard, unchanged: Outcomes) -> Outcomes:
        simulation = self._simulation
        self._pause()
        if simulation.random.random() < simulation.faults.reclaimed:
            simulation.model.seen["told to end"] += 1
            self._leaving = True
        if simulation.random.random() < simulation.faults.fails:
            self._device_busy = False
            raise _ShardError("an error of a device driver")
        first, end = shard.rehearse or (0, shard.num_rows)
        simulation.clock.thread.sleep(0.2 * (end - first))
        return {
            row_name(shard, row): unchanged.get(row_name(shard, row)) or self._outcome(shard, row)
            for row in range(first, end)
        }

    def _outcome(self, shard: Shard, row: int) -> str:
        simulation = self._simulation
        self._heartbeats += 1
        nature = simulation.natures[row_name(shard, row)]
        if nature is Nature.BAD:
            return nature.value
        if row in shard.skip:
            return CRASH
        if nature is Nature.POISON:
            simulation.log("%s kills with row %d", shard.name, row)
            self._process.kill()
        return NO_MEMORY if simulation.random.random() < simulation.faults.no_memory else OK


class _ShardError(Exception):
    """A shard fails, but its worker lives."""


def _is_retried(outcome: str, again: tuple[str, ...]) -> bool:
    return outcome != OK and (not again or outcome in again)


class Driver:
    """A driver that does what `darkroom run` does, with a pool of simulated workers."""

    kind = "driver"

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.process = Process(simulation.clock, simulation.name(self.kind))
        self.end: str | None = None
        """How it ended: `done` or the error's message; None until then."""
        self.abandoned: list[Shard] = []
        self.done = bytearray()
        """For each part, whether it existed when the driver started."""

    def main(self) -> None:
        """Run the driver, and record how it ends."""
        try:
            self.drive()
            self.end = "done"
        except DarkroomError as error:
            self.end = str(error)
        self.simulation.log("ends: %s, abandoned: %s", self.end, [shard.name for shard in self.abandoned])

    def drive(self) -> None:
        """Do what `jobs.run.run_job` does."""
        store = self.simulation.store
        plan, num_shards = self.settle()
        self.done = list_parts(Output(store, OUTPUT), ShardNames([num_shards])).done()
        self.simulation.log("sees %d of %d parts", sum(self.done), num_shards)
        if all(self.done) and is_finished(Output(store, OUTPUT)):
            return
        if not all(self.done):
            dispatcher = run._dispatcher(plan, self.done)
            self.run_shards(dispatcher)
            missing = still_missing(dispatcher.abandoned, Output(store, OUTPUT), ShardNames([num_shards]))
            self.abandoned = [lost.shard for lost in missing]
        if not self.abandoned:
            self.finish(num_shards)

    def settle(self) -> tuple[Plan, int]:
        """The job's plan and its number of parts, as in `jobs.run._plan_and_record`."""
        store, plan = self.simulation.store, self.simulation.plan
        record = read_record(Output(store, OUTPUT))
        if record is None:
            probe(Output(store, OUTPUT))
            record = claim(Output(store, OUTPUT), plan, Findings(counts=(), bad_rows=(), num_bad={}))
        files = tuple(
            SurveyedFile(
                stored=StoredObject(uri=file.uri, size_bytes=file.size_bytes, etag=file.etag),
                num_rows=file.num_rows,
            )
            for file in plan.files
        )
        return plan_of(record, Survey(job=plan.job, files=files, notes=()), OUTPUT), record.num_shards

    def finish(self, num_shards: int) -> None:
        """Do what `jobs.reports.finish.finish` does."""
        store = self.simulation.store
        parts = [*list_parts(Output(store, OUTPUT), ShardNames([num_shards]))]
        if len(parts) < num_shards:
            raise StorageError(f"{len(parts)} of {num_shards} parts")
        store.replace(join(OUTPUT, MANIFEST), b"")
        store.replace(join(OUTPUT, SUCCESS), b"")

    def run_shards(self, dispatcher: Dispatcher) -> None:
        """Do what `jobs.fleet.shard_loop.generate_shards` does, with the real layout and the real pool."""
        job = self.simulation.plan.job
        dispatcher.lose = self._blaming(dispatcher)
        layout = lay_out(job.spec.workers, dispatcher.num_waiting)
        with pool.WorkerPool(job, layout) as workers:
            for _ in workers.run(dispatcher):
                pass
        self.abandoned = [lost.shard for lost in dispatcher.abandoned]

    def _blaming(self, dispatcher: Dispatcher) -> Callable[[str, str], Death]:
        """The dispatcher's `lose`, which tells the reference model of rows that were alone with a death."""
        lose = dispatcher.lose

        def blaming(worker: str, reason: str) -> Death:
            self.simulation.model.blamed.update(
                row_name(shard, shard.rehearse[0])
                for shard in dispatcher._workers[worker].in_flight
                if shard.rehearse and shard.rehearse[1] - shard.rehearse[0] == 1
            )
            return lose(worker, reason)

        return blaming


class RetryDriver(Driver):
    """A driver that does what `darkroom retry` does."""

    kind = "retry"

    def drive(self) -> None:
        """Do what `jobs.retry.retry_job` does."""
        simulation, store = self.simulation, self.simulation.store
        plan, num_shards = self.settle()
        codes = () if simulation.calm else simulation.random.choice(((), (NO_MEMORY,), (CRASH,)))
        parts = [*list_parts(Output(store, OUTPUT), ShardNames([num_shards]))]
        chosen = bytearray(num_shards)
        for part in parts:
            outcomes = decode(store.read(part.uri))
            chosen[part.index] = any(_is_retried(code, codes) for code in outcomes.values())
        simulation.log(
            "generates rows of %s again, %s", counted(sum(chosen), "part"), codes or "all that failed"
        )
        if any(chosen):
            self.run_shards(retry._dispatcher(plan, chosen, codes))
            if sum(1 for _ in list_parts(Output(store, OUTPUT), ShardNames([num_shards]))) == num_shards:
                self.finish(num_shards)

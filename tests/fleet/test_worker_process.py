"""A worker's process told to end: what it finishes, what it gives back, and when it ends by itself."""

import os
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from actors.checkpoints.checkpoint_folders import local_folder
from actors.engine.engine import Generated
from actors.rows.opened_rows import OpenedRow
from actors.storage.stores import open_storage
from actors.worker_process import EXIT_AFTER_S, WorkerProcess
from jobs.planning.plan import Plan
from schemas import __version__
from schemas.errors import DeviceError, ReclaimedError, SpecError, StorageError
from schemas.job import Job, ShardReport
from schemas.output_layout import JOB_RECORD
from schemas.spec.job_spec import BatchingSpec
from tests.support.engines import NoiseEngine
from tests.support.in_process import job_spec, plan_for
from tests.support.running import parts, text_rows, write_rows
from tests.support.s3.fault_proxy import FaultProxy
from tests.support.s3.on_s3 import upload

NOTICE_S = 7.0
INDUCTOR = "TORCHINDUCTOR_CACHE_DIR"
"""The variable that names torch's folder for compiled code."""


class HeldEngine(NoiseEngine):
    """An engine that generates nothing until the test lets it."""

    begun = threading.Event()
    let_go = threading.Event()
    error: Exception | None = None
    """What it raises in place of images."""

    def generate(self, rows: Sequence[OpenedRow], decoders: Executor) -> Iterator[Generated]:
        HeldEngine.begun.set()
        HeldEngine.let_go.wait()
        if HeldEngine.error:
            raise HeldEngine.error
        yield from super().generate(rows, decoders)


def held(job: Job, num_cpus: int) -> HeldEngine:
    return HeldEngine(0)


ENGINE = f"{__name__}:held"
Start = Callable[..., WorkerProcess]


class Timers:
    """Stands for `threading.Timer`: the test decides when time is up."""

    def __init__(self) -> None:
        self.calls: dict[float, Callable[[], object]] = {}
        """What happens after so many seconds."""

    def __call__(self, seconds: float, call: Callable[..., object], arguments: tuple[Any, ...]) -> "Timers":
        self.calls[seconds] = lambda: call(*arguments)
        return self

    def start(self) -> None:
        """Nothing happens before the test says so."""


@pytest.fixture
def timers(monkeypatch: pytest.MonkeyPatch) -> Timers:
    stand_in = Timers()
    monkeypatch.setattr(threading, "Timer", stand_in)
    return stand_in


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The exit codes with which the process would have ended."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    return codes


@pytest.fixture
def start() -> Iterator[Start]:
    """Builds processes, which end with the test; the engine holds again, and SIGTERM ends pytest again."""
    handler = signal.getsignal(signal.SIGTERM)
    HeldEngine.begun.clear()
    HeldEngine.let_go.clear()
    processes: list[WorkerProcess] = []

    def build(job: Job, *, num_cpus: int = 1) -> WorkerProcess:
        processes.append(WorkerProcess(job, num_cpus=num_cpus, engine=ENGINE))
        return processes[-1]

    yield build
    HeldEngine.let_go.set()
    signal.signal(signal.SIGTERM, handler)
    for process in processes:
        process._runs.shutdown()
        if process._worker:
            process._worker.close()


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """A job of two shards whose record is written."""
    spec = job_spec(
        write_rows(tmp_path / "rows.parquet", text_rows(8)),
        tmp_path / "out",
        batching={"shard_rows": 4},
        workers={"notice_s": NOTICE_S},
    )
    record = tmp_path / "out" / "_darkroom" / "job.json"
    record.parent.mkdir(parents=True)
    record.touch()
    return plan_for(spec)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Ray's threads."""
    with ThreadPoolExecutor(3) as pool:
        yield pool
        HeldEngine.let_go.set()


def test_a_worker_is_told_what_the_driver_knows_of_the_store(
    s3_faults: FaultProxy, plan: Plan, start: Start, s3_folder: str
) -> None:
    """It asks the store for nothing that a worker may not do."""
    output = plan.job.spec.output.model_copy(update={"path": s3_folder})
    open_storage(s3_folder).create(f"{s3_folder}/{JOB_RECORD}", b"", {})
    for in_pieces in (True, False):
        spec = plan.job.spec.model_copy(update={"output": output})
        process = made_ready(start(replace(plan.job, spec=spec, in_pieces=in_pieces)))
        storage = process._ready_worker._resources.output.storage

        assert storage.takes_pieces(f"{s3_folder}/probe") == in_pieces
    assert s3_faults.count("POST") == 0


@pytest.mark.parametrize("change", ["changed", "missing", "new", "no folder"])
def test_a_worker_whose_checkpoint_is_not_the_drivers_does_not_start(
    plan: Plan, start: Start, tmp_path: Path, change: str
) -> None:
    """The same path on another machine may be another copy, under the same fingerprint."""
    name, card = next(iter(plan.job.models.items()))
    copy = tmp_path / "copy"
    folder = local_folder(plan.job.checkpoints[name])
    assert folder is not None
    shutil.copytree(folder, copy)
    job = replace(plan.job, models={**plan.job.models, name: replace(card, checkpoint=str(copy))})
    made_ready(start(job))
    file = copy / "unet" / "config.json"
    if change == "changed":
        file.write_bytes(file.read_bytes() + b" ")
    elif change == "missing":
        file.unlink()
    elif change == "new":
        (file := copy / "unet" / "more.json").touch()
    else:
        shutil.rmtree(file := copy)

    with pytest.raises(SpecError, match=f"{file} .*on {socket.gethostname()}") as refused:
        start(job).ready()

    assert name in str(refused.value)


def test_a_worker_builds_a_demo_that_its_machine_lacks(plan: Plan, start: Start) -> None:
    """A demo is not a copy of the driver's, and nothing of it is compared."""
    name, card = next(iter(plan.job.models.items()))
    assert card.checkpoint.startswith("demo:")
    models = {**plan.job.models, name: replace(card, files={"unet/config.json": "0"})}

    made_ready(start(replace(plan.job, models=models)))


def made_ready(process: WorkerProcess) -> WorkerProcess:
    assert process.ready()
    return process


def test_the_shard_on_the_device_is_finished_and_the_others_are_given_back(
    start: Start, plan: Plan, threads: ThreadPoolExecutor, tmp_path: Path, timers: Timers
) -> None:
    """What finishes within the notice time counts."""
    process = made_ready(start(plan.job))
    first, second = plan.shards()
    at_work = threads.submit(process.run, first)
    HeldEngine.begun.wait()

    signal.raise_signal(signal.SIGTERM)
    refused = threads.submit(process.run, second)
    HeldEngine.let_go.set()

    with pytest.raises(ReclaimedError):
        refused.result()
    assert at_work.result().ok == 4
    assert process.progress().leaving
    assert [part.stem for part in parts(tmp_path / "out")] == [first.name]


def test_a_shard_that_is_not_finished_in_time_is_given_back(
    start: Start, plan: Plan, threads: ThreadPoolExecutor, timers: Timers, exits: list[int]
) -> None:
    """After the notice time; some seconds later the process ends, if nobody has ended it by then."""
    process = made_ready(start(plan.job))
    at_work: Future[ShardReport] = threads.submit(process.run, next(iter(plan.shards())))
    HeldEngine.begun.wait()
    signal.raise_signal(signal.SIGTERM)
    assert not at_work.done()

    timers.calls[NOTICE_S]()
    with pytest.raises(ReclaimedError, match="was not finished in time"):
        at_work.result()
    assert exits == []
    timers.calls[NOTICE_S + EXIT_AFTER_S]()

    assert exits == [128 + signal.SIGTERM]
    assert timers.calls.keys() == {NOTICE_S, NOTICE_S + EXIT_AFTER_S}


def test_a_second_sigterm_changes_nothing(start: Start, plan: Plan, timers: Timers) -> None:
    """The notice time does not begin anew."""
    made_ready(start(plan.job))
    signal.raise_signal(signal.SIGTERM)
    timers.calls.clear()

    signal.raise_signal(signal.SIGTERM)

    assert timers.calls == {}


def test_a_process_that_is_told_to_end_before_it_is_ready_gives_itself_back(
    start: Start, plan: Plan, timers: Timers
) -> None:
    """Its driver starts another one."""
    process = start(plan.job)

    signal.raise_signal(signal.SIGTERM)

    with pytest.raises(ReclaimedError, match="before it was ready"):
        process.ready()


def test_a_worker_that_does_not_see_the_record_is_refused(start: Start, plan: Plan, tmp_path: Path) -> None:
    """It would write its parts where nobody finds them."""
    (tmp_path / "out" / "_darkroom" / "job.json").unlink()
    process = start(plan.job)

    with pytest.raises(SpecError, match="does not exist for a worker on "):
        process.ready()


def test_a_worker_has_as_many_threads_as_cpus(start: Start, plan: Plan) -> None:
    """To decode and to encode."""
    process = made_ready(start(plan.job, num_cpus=3))
    HeldEngine.let_go.set()

    process.run(next(iter(plan.shards())))

    assert process._ready_worker._resources.decoders._max_workers == 3
    assert process._ready_worker._resources.encoders._max_workers == 3


def test_a_worker_waits_for_its_input_as_long_as_the_spec_says(
    start: Start, s3_faults: FaultProxy, s3_folder: str, tmp_path: Path
) -> None:
    """`errors.storage_deadline_s`, for the input as for the output."""
    uri = upload(open_storage(s3_folder), f"{s3_folder}-in.parquet", text_rows(4), tmp_path)
    spec = job_spec(
        Path("in.parquet"),
        tmp_path / "out",
        input={"path": uri},
    )
    (tmp_path / "out" / "_darkroom").mkdir(parents=True)
    (tmp_path / "out" / "_darkroom" / "job.json").touch()
    plan = plan_for(spec)
    errors = spec.errors.model_copy(update={"storage_deadline_s": 1})
    impatient = replace(plan.job, spec=plan.job.spec.model_copy(update={"errors": errors}))
    process = made_ready(start(impatient))
    s3_faults.inject("503", method="GET", count=10_000)

    with pytest.raises(StorageError, match="within 1 s"):
        process.run(next(iter(plan.shards())))


def test_a_process_whose_device_is_lost_ends_by_itself(
    start: Start, plan: Plan, timers: Timers, exits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver ends it sooner, unless it no longer hears of it."""
    monkeypatch.setattr(HeldEngine, "error", DeviceError("CUDA error"))
    process = made_ready(start(plan.job))
    HeldEngine.let_go.set()

    with pytest.raises(DeviceError):
        process.run(next(plan.shards()))

    assert exits == []
    timers.calls[EXIT_AFTER_S]()
    assert exits == [1]


@pytest.mark.parametrize("named", ["", "/elsewhere"])
def test_compiled_code_is_kept_by_version(
    start: Start, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    """In darkroom's cache, for the machine's other workers and later jobs, unless a folder is named."""
    monkeypatch.setenv("DARKROOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(INDUCTOR, named)  # so that it is as before after the test
    if not named:
        monkeypatch.delenv(INDUCTOR)
    spec = plan.job.spec.model_copy(update={"batching": BatchingSpec(compile=True)})

    start(replace(plan.job, spec=spec)).ready()

    versions = f"torch-{version('torch')}-darkroom-{__version__}"
    assert os.environ[INDUCTOR] == (named or str(tmp_path / "cache" / "compiled" / versions))

"""Jobs on a store that has the habits of Hugging Face's buckets: a gateway before the real S3 server."""

import os
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

import pytest

from actors.engine.engine import Generated
from actors.parts.commit import probe
from actors.rows.opened_rows import OpenedRow
from actors.storage.objects import Storage
from actors.storage.output import Output
from actors.storage.stores import open_storage
from jobs.output.lease import Lease
from jobs.planning.plan import Plan
from jobs.reports.run_result import RunResult
from schemas.errors import RefusedError, RowError, StorageError
from schemas.job import Shard
from schemas.spec.spec_file import load_spec
from tests.support.engines import NoiseEngine
from tests.support.in_process import worker_for
from tests.support.running import text_rows, write_spec
from tests.support.s3.bucket_gateway import BucketGateway, serve_bucket_gateway
from tests.support.s3.fault_proxy import FaultProxy, serve_fault_proxy
from tests.support.s3.on_s3 import assert_whole_on_s3, env_of, upload
from tests.support.s3.s3_server import S3Server
from tests.support.simulation.fake_ray import Actor
from tests.support.simulation.in_process_driver import InProcessDriver

ROWS = text_rows(12)
WITHOUT_CHECKSUMS = {
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
}
TOKEN = "a-session-token"
OUTPUT = "s3://out/buckets"


@pytest.fixture(scope="module")
def gateway(s3: S3Server) -> Iterator[BucketGateway]:
    """One for all tests of this file."""
    with serve_bucket_gateway(s3.env["AWS_ENDPOINT_URL"]) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def faults(gateway: BucketGateway) -> Iterator[FaultProxy]:
    """The network before the gateway."""
    with serve_fault_proxy(gateway.url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def env(s3: S3Server, faults: FaultProxy) -> Iterator[dict[str, str]]:
    """This process's environment, as docs/operations.md gives it for such a store."""
    env = env_of(s3) | WITHOUT_CHECKSUMS | {"AWS_ENDPOINT_URL": faults.url, "AWS_SESSION_TOKEN": TOKEN}
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in env.items():
            patch.setenv(name, value)
        yield env


@pytest.fixture(scope="module")
def buckets(env: dict[str, str]) -> Storage:
    """The store through the gateway."""
    return open_storage("s3://out", timeout_s=10, deadline_s=30)


@pytest.fixture
def uri(buckets: Storage) -> str:
    """An object of a few bytes."""
    uri = f"s3://out/{uuid.uuid4().hex}/a"
    buckets.create(uri, b"content", {})
    return uri


class FirstFails(NoiseEngine):
    """An engine that cannot generate the first row."""

    def generate(self, rows: Sequence[OpenedRow], decoders: Executor) -> Iterator[Generated]:
        for generated in super().generate(rows, decoders):
            is_first = generated.sample.opened.row.row_id == ROWS[0]["row_id"]
            problem = RowError("nonfinite_image", "all values are NaN") if is_first else None
            yield replace(generated, pixels=None if problem else generated.pixels, problem=problem)


@pytest.fixture(scope="module")
def driver(buckets: Storage, tmp_path_factory: pytest.TempPathFactory) -> InProcessDriver:
    """The driver of a job of 12 rows in 3 parts, whose input and output are in buckets."""
    folder = tmp_path_factory.mktemp("job")
    rows = upload(buckets, "s3://inp/buckets/rows.parquet", ROWS, folder)
    sections = {"workers": {"num": 1}, "batching": {"shard_rows": 4}, "errors": {"max_rate": 1.0}}
    spec = load_spec(write_spec(folder / "job.yaml", rows, OUTPUT, **sections))
    return InProcessDriver(spec, num_workers=1)


@pytest.fixture(scope="module")
def first_run(driver: InProcessDriver, faults: FaultProxy) -> RunResult:
    """A run with a row that fails. The reply to a commit is lost, and another worker commits a part first."""
    faults.inject("lost_reply", method="PUT", key="/data/train-00000", count=1)
    driver.engine = lambda: FirstFails(0)

    def commit_first(actor: Actor, shard: Shard) -> None:
        if shard.index == 1:
            with worker_for(Plan(job=actor.job, files=()), NoiseEngine(0), num_threads=1) as other:
                assert other.run(shard).committed

    driver.before = commit_first
    result = driver.run()
    assert faults.injected["lost_reply"] == 1
    driver.before = lambda actor, shard: None
    driver.engine = lambda: NoiseEngine(0)
    return result


def test_a_whole_job_runs_on_such_a_store(
    first_run: RunResult, buckets: Storage, gateway: BucketGateway, env: dict[str, str], tmp_path: Path
) -> None:
    """Each row has one outcome, after a lost reply too: whose a part is, its footer says."""
    assert_whole_on_s3(buckets, OUTPUT, ROWS, tmp_path, env)

    assert (first_run.totals.rows, first_run.totals.ok, first_run.totals.failed) == (12, 11, 1)
    assert b"row-0011" in buckets.read(f"{OUTPUT}/contact-sheet.html")
    assert gateway.refused == []


@pytest.mark.usefixtures("first_run")
def test_another_host_learns_no_secret(gateway: BucketGateway) -> None:
    """It gets neither signature nor session token, nor a condition on ETags that are not its own."""
    names = {name for headers in gateway.redirected for name in headers}

    assert "range" in names
    assert [name for name in names if name.startswith(("authorization", "x-amz-", "if-"))] == []
    assert TOKEN not in str(gateway.redirected)


@pytest.mark.usefixtures("first_run")
def test_a_job_is_resumed_and_retried(
    driver: InProcessDriver, buckets: Storage, env: dict[str, str], tmp_path: Path
) -> None:
    """Only a part that is gone is made again, and only the one with a failed row is replaced."""
    driver.given.clear()
    buckets.delete(f"{OUTPUT}/data/train-00002-of-00003.parquet")

    driver.run()
    resumed = [shard.index for shard in driver.given]
    result = driver.retry()

    assert (resumed, [shard.index for shard in driver.given[1:]]) == ([2], [0])
    assert (result.totals.ok, result.totals.failed) == (12, 0)
    assert_whole_on_s3(buckets, OUTPUT, ROWS, tmp_path, env)


def test_of_two_drivers_one_is_refused(buckets: Storage) -> None:
    """The lease is an object as others are."""
    output = Output(buckets, f"s3://out/{uuid.uuid4().hex}")

    with Lease(output), pytest.raises(RefusedError, match="another driver is using"), Lease(output):
        pass


@pytest.mark.parametrize("redirects", [{}, {"GET": 1}], ids=["by the store", "by another host"])
def test_a_change_is_noticed_whoever_answers(
    gateway: BucketGateway,
    buckets: Storage,
    uri: str,
    monkeypatch: pytest.MonkeyPatch,
    redirects: dict[str, int],
) -> None:
    """Nobody looks at the condition of a read; the store's own ETag tells."""
    monkeypatch.setattr(gateway, "redirects", redirects)
    with buckets.open(uri) as unchanged, buckets.open(uri) as changed:
        content = unchanged.read()
        buckets.replace(uri, b"another")

        with pytest.raises(StorageError, match="changed while it was being read"):
            changed.read()

    assert content == b"content"


def test_a_store_without_etags_is_refused(
    gateway: BucketGateway, buckets: Storage, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that has another host answer even this; no change of an object would be noticed."""
    monkeypatch.setattr(gateway, "redirects", {"HEAD": 1})

    with pytest.raises(RefusedError, match="names no ETag"):
        buckets.stat(uri)


def test_a_store_that_refuses_checksums_names_the_way_out(
    gateway: BucketGateway, buckets: Storage, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK adds them unless two variables say otherwise."""
    for name in WITHOUT_CHECKSUMS:
        monkeypatch.delenv(name)

    with pytest.raises(StorageError, match=r"AWS_REQUEST_CHECKSUM_CALCULATION .* to when_required"):
        open_storage(uri, deadline_s=10).replace(uri, b"")
    gateway.refused.clear()


def test_the_probe_refuses_such_a_store_without_if_match(
    gateway: BucketGateway, buckets: Storage, s3_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it ignores the condition of a write as it does that of a read, a retry could lose rows."""
    probe(Output(buckets, s3_folder))
    monkeypatch.setattr(gateway, "keeps_if_match", False)

    with pytest.raises(RefusedError, match=r"\(If-Match\).* could lose rows"):
        probe(Output(buckets, s3_folder))

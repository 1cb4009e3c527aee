"""The real program on a real S3 server while things fail: every row once, whatever it was.

`python -m tests.support.simulation.soak` does the same for longer.
"""

import json
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from actors.storage.objects import Storage
from actors.storage.stores import open_storage
from schemas.spec.spec_file import load_spec
from tests.support.ray_nodes import RayNodes
from tests.support.running import (
    Finished,
    Record,
    Started,
    darkroom_here,
    output_rows,
    row_ids,
    run_with,
    start_with,
    text_rows,
    write_spec,
)
from tests.support.s3.fault_proxy import STORM, FaultProxy, serve_fault_proxy
from tests.support.s3.on_s3 import assert_whole_on_s3, download, env_of, upload
from tests.support.s3.s3_server import S3Server
from tests.support.simulation.in_process_driver import InProcessDriver
from tests.support.simulation.soak import RATE, kill_drivers

LEASE_VALID_S = 60
QUICK_SHARDS = {"batching": {"shard_rows": 4}}
AWAY_S = 12
STOPPED_WITHIN_S = 120
"""Two tries of the lease at 10 s each, and a busy machine."""
FAULTY_REPLIES = ("503", "lost_reply", "reset", "409")


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A Ray cluster with room for two workers, which reach the store through a proxy, as the drivers do."""

    proxy: FaultProxy
    nodes: RayNodes
    env: dict[str, str]
    """The environment of a driver."""

    def start(self, engine: str, spec: Path) -> Started:
        """Start a driver."""
        return start_with(engine, spec, **self.env)

    def run(self, engine: str, spec: Path) -> Finished:
        """Run a driver to its end."""
        return run_with(engine, spec, **self.env)


@pytest.fixture(scope="module")
def shared_network(s3_only: dict[str, str]) -> Iterator[Network]:
    """The network of this file's tests."""
    with serve_fault_proxy(s3_only["AWS_ENDPOINT_URL"]) as proxy:
        env = s3_only | {"AWS_ENDPOINT_URL": proxy.url}
        with RayNodes(head_cpus=2, **env) as nodes:
            yield Network(proxy=proxy, nodes=nodes, env=env | nodes.env)


@pytest.fixture
def network(shared_network: Network, s3_only: dict[str, str]) -> Iterator[Network]:
    """The same, in front of the shared server and without faults at the beginning."""
    shared_network.proxy.calm()
    yield shared_network
    shared_network.proxy.calm()
    shared_network.proxy.target = s3_only["AWS_ENDPOINT_URL"]


def test_a_job_ends_well_where_two_of_five_requests_go_wrong(
    network: Network, store: Storage, s3_only: dict[str, str], tmp_path: Path
) -> None:
    """Each kind of fault, before and after the store has done what was asked, for every object."""
    output, rows = "s3://out/storm", text_rows(48)
    uri = upload(store, "s3://inp/storm/rows.parquet", rows, tmp_path)
    files = {"output": {"path": output, "images": "files"}}
    spec = write_spec(tmp_path / "job.yaml", uri, output, **QUICK_SHARDS, **files)
    proxy = network.proxy
    proxy.break_by_chance(RATE, seed=1)

    finished = network.run("quick", spec)

    assert finished.code == 0, finished.err
    assert "total: 48 rows ok, 0 filtered, 0 failed" in finished.out
    assert {*STORM["PUT"], *STORM["GET"]} <= proxy.injected.keys()
    assert proxy.injected.total() > len(proxy.requests) / 4
    assert_whole_on_s3(store, output, rows, tmp_path, s3_only)


def test_a_job_outlives_a_store_that_is_killed_and_comes_back(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for as long as `errors.storage_deadline_s` allows, and goes on."""
    rows, output = text_rows(60), "s3://out/killed"

    with S3Server() as server:
        network.proxy.target = server.env["AWS_ENDPOINT_URL"]
        environment = env_of(server)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        store = open_storage(output)
        uri = upload(store, "s3://inp/rows.parquet", rows, tmp_path)
        spec = write_spec(tmp_path / "job.yaml", uri, output, **QUICK_SHARDS, workers={"num": 1})
        with network.start("slow", spec) as run:
            run.wait_until(lambda: len(list(store.list(f"{output}/data"))) > 2)
            server.kill()
            time.sleep(AWAY_S)  # how long it is away is what is tested
            server.restart()
            finished = run.wait()

        assert finished.code == 0, finished.err
        assert_whole_on_s3(store, output, rows, tmp_path, environment)


def test_of_two_drivers_that_begin_at_once_one_is_refused(
    network: Network, store: Storage, s3_only: dict[str, str], tmp_path: Path
) -> None:
    """The other one makes everything."""
    output, rows = "s3://out/two", text_rows(40)
    uri = upload(store, "s3://inp/two/rows.parquet", rows, tmp_path)
    spec = write_spec(tmp_path / "job.yaml", uri, output, **QUICK_SHARDS, workers={"num": 1})

    with network.start("slow", spec) as one, network.start("slow", spec) as other:
        both = sorted((one.wait(), other.wait()), key=lambda finished: finished.code)

    assert [finished.code for finished in both] == [0, 4], both
    assert f"another driver is using {output}: process " in both[1].err
    assert_whole_on_s3(store, output, rows, tmp_path, s3_only)


def test_a_driver_that_was_suspended_stops_when_another_has_taken_over(
    network: Network, store: Storage, s3_only: dict[str, str], tmp_path: Path
) -> None:
    """With exit code 4; what the other one has written stays as it is."""
    output, rows = "s3://out/suspended", text_rows(80)
    uri = upload(store, "s3://inp/suspended/rows.parquet", rows, tmp_path)
    spec = write_spec(tmp_path / "job.yaml", uri, output, **QUICK_SHARDS, workers={"num": 1, "num_cpus": 1})
    lease = f"{output}/_darkroom/driver.json"

    with network.start("slow", spec) as suspended:
        suspended.wait_until(lambda: len(list(store.list(f"{output}/data"))) > 2)
        suspended.signal(signal.SIGSTOP)
        # As if it had been suspended for longer than its lease holds.
        said = json.loads(store.read(lease))
        said["renewed_at"] -= LEASE_VALID_S + 1
        store.replace(lease, json.dumps(said).encode())
        successor = network.run("quick", spec)
        made = {stored.uri: stored.etag for stored in store.list(output)}
        suspended.signal(signal.SIGCONT)
        stopped = suspended.wait()

    assert successor.code == 0, successor.err
    assert stopped.code == 4, stopped.err
    assert f"another driver has taken over {output}: process " in stopped.err
    assert {stored.uri: stored.etag for stored in store.list(output)} == made
    assert_whole_on_s3(store, output, rows, tmp_path, s3_only)


def test_drivers_killed_at_random_moments_in_a_storm_lose_and_double_no_row(
    network: Network, store: Storage, s3_only: dict[str, str], tmp_path: Path
) -> None:
    """Again and again on a Ray that stays up, as `kubectl delete pod --force` does it to a driver."""
    rows = text_rows(80)
    uri = upload(store, "s3://inp/kills/rows.parquet", rows, tmp_path)
    spec = write_spec(tmp_path / "job.yaml", uri, "s3://out/kills", **QUICK_SHARDS, workers={"num": 1})
    network.proxy.break_by_chance(RATE, seed=2)

    killed = kill_drivers(
        lambda: network.start("slow", spec),
        2,
        random.Random(3),
        lambda: len(list(store.list("s3://out/kills/data"))),
    )
    finished = network.run("quick", spec)

    assert killed == 2
    assert finished.code == 0, finished.err
    assert_whole_on_s3(store, "s3://out/kills", rows, tmp_path, s3_only)


def test_a_write_that_arrives_when_its_shard_was_made_by_another_worker_changes_nothing(
    network: Network, store: Storage, s3_only: dict[str, str], tmp_path: Path
) -> None:
    """A worker is suspended while its part is under way; when the store hears of it, it refuses it."""
    output, rows = "s3://out/late", text_rows(24)
    uri = upload(store, "s3://inp/late/rows.parquet", rows, tmp_path)
    errors = {"storage_deadline_s": 6, "stall_timeout_s": 7}
    spec = write_spec(
        tmp_path / "job.yaml", uri, output, **QUICK_SHARDS, errors=errors, workers={"num": 1, "num_cpus": 1}
    )
    part = f"{output}/data/train-00000-of-00006.parquet"
    proxy = network.proxy
    proxy.inject("hold", method="PUT", key="/data/train-00000")
    with network.start("slow", spec) as run:
        run.wait_until(lambda: proxy.injected["hold"])
        run.wait_until(lambda: len(network.nodes.workers()) == 1)
        os.kill(network.nodes.workers()[0], signal.SIGSTOP)
        made = run.wait_until(lambda: store.stat(part))
        proxy.release()
        run.wait_until(lambda: any("train-00000" in line and "412" in line for line in proxy.answers))
        finished = run.wait()

    assert finished.code == 0, finished.err
    assert "died: it made no progress for 7 s" in finished.err
    assert store.stat(part) == made
    assert_whole_on_s3(store, output, rows, tmp_path, s3_only)


def test_a_job_survives_a_store_that_hangs_and_a_network_that_loses_replies(
    network: Network, store: Storage, s3_only: dict[str, str], tmp_path: Path
) -> None:
    """Stopped while the store hangs, it ends all the same. Run again under 503, 409, resets and lost replies,
    on listings, reads, images and parts, it makes what was missing: each row once, one object an image,
    and all of it as an undisturbed run to a local disk makes it."""
    output, rows = "s3://out/faulty", text_rows(32)
    uri = upload(store, "s3://inp/faulty/rows.parquet", rows, tmp_path)
    shards = QUICK_SHARDS | {"workers": {"num": 1}}
    files = {"output": {"path": output, "images": "files"}}
    local = {"output": {"path": str(tmp_path / "local"), "images": "files"}}
    spec = write_spec(tmp_path / "job.yaml", uri, output, **shards, **files)
    local_spec = write_spec(tmp_path / "local.yaml", uri, output, **shards, **local)
    proxy = network.proxy
    with network.start("slow", spec) as run:
        run.wait_until(lambda: proxy.count("PUT", "/data/train-") > 2)
        proxy.inject("hang", method="PUT", count=1000)
        hung = proxy.count("PUT")
        run.wait_until(lambda: proxy.count("PUT") > hung)
        run.press_ctrl_c()
        stopped = run.wait(STOPPED_WITHIN_S)
    proxy.faults.clear()
    for kind in FAULTY_REPLIES:
        proxy.inject(kind, method="PUT", key="/data/train-", count=2)
        proxy.inject(kind, method="PUT", key="/images/", count=2)
        proxy.inject(kind, method="GET", key="rows.parquet", count=1)
        proxy.inject(kind, method="GET", key="list-type", count=1)
    resumed = network.run("quick", spec)
    left = [fault for fault in proxy.faults if fault.count]
    InProcessDriver(load_spec(local_spec), num_workers=1).run()

    assert stopped.code == 130
    assert resumed.code == 0, resumed.err
    assert re.search(r"resuming: \d of 8 parts already saved, \d left to generate", resumed.out)
    assert not left
    there = download(store, output, tmp_path / "there")
    assert row_ids(there) == [row["row_id"] for row in rows]
    assert len(list(store.list(f"{output}/images"))) == len(rows)
    verified = darkroom_here("verify", output, **s3_only)
    assert verified.code == 0, verified.err
    assert relative_rows(there, output) == relative_rows(tmp_path / "local", tmp_path / "local")


def test_a_store_that_refuses_every_part_ends_the_job_with_exit_code_5(
    network: Network, store: Storage, tmp_path: Path
) -> None:
    """After `errors.storage_deadline_s`, with the last answer and what to do."""
    uri = upload(store, "s3://inp/refused/rows.parquet", text_rows(8), tmp_path)
    spec = write_spec(
        tmp_path / "job.yaml", uri, "s3://out/refused", errors={"storage_deadline_s": 3}, workers={"num": 1}
    )
    network.proxy.inject("503", method="PUT", key="/data/train-", count=1000)

    failed = network.run("quick", spec)

    assert failed.code == 5
    assert "put_object did not succeed within 3 s; the last error: SlowDown (HTTP 503)" in failed.err
    assert "run again to resume" in failed.err
    assert not list(store.list("s3://out/refused/data"))


def relative_rows(downloaded: Path, output: object) -> list[Record]:
    """All rows of an output, with its images' places as they are below it."""
    rows = output_rows(downloaded)
    return [row | {"image": row["image"]["path"].removeprefix(str(output))} for row in rows]

"""The real program on a real S3 server while things fail: every row once, whatever it was.

`python -m tests.support.simulation.soak` does the same for longer.
"""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from actors.storage.objects import Storage
from actors.storage.stores import open_storage
from tests.support.ray_nodes import RayNodes
from tests.support.running import Started, text_rows, write_spec
from tests.support.s3.fault_proxy import STORM, serve_fault_proxy
from tests.support.s3.on_s3 import assert_whole_on_s3, env_of, upload
from tests.support.s3.s3_server import S3Server
from tests.support.simulation.soak import RATE, kill_drivers

LEASE_VALID_S = 60
QUICK_SHARDS = {"batching": {"shard_rows": 4}}
AWAY_S = 12


def test_a_job_ends_well_where_two_of_five_requests_go_wrong(
    store: Storage, s3_only: dict[str, str], tmp_path: Path
) -> None:
    """Each kind of fault, before and after the store has done what was asked, for every object."""
    output, rows = "s3://out/storm", text_rows(48)
    uri = upload(store, "s3://inp/storm/rows.parquet", rows, tmp_path)
    files = {"output": {"path": output, "images": "files"}}
    spec = write_spec(tmp_path / "job.yaml", uri, output, **QUICK_SHARDS, **files)

    with serve_fault_proxy(s3_only["AWS_ENDPOINT_URL"]) as proxy:
        proxy.break_by_chance(RATE, seed=1)
        environment = s3_only | {"AWS_ENDPOINT_URL": proxy.url}
        with Started("-m", "tests.support.engines", "quick", spec, **environment) as run:
            finished = run.wait()

    assert finished.code == 0, finished.err
    assert "total: 48 rows ok, 0 filtered, 0 failed" in finished.out
    assert {*STORM["PUT"], *STORM["GET"]} <= proxy.injected.keys()
    assert proxy.injected.total() > len(proxy.requests) / 4
    assert_whole_on_s3(store, output, rows, tmp_path, s3_only)


def test_a_job_outlives_a_store_that_is_killed_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for as long as `errors.storage_deadline_s` allows, and goes on."""
    rows, output = text_rows(120), "s3://out/killed"

    with S3Server() as server:
        environment = env_of(server)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        store = open_storage(output)
        uri = upload(store, "s3://inp/rows.parquet", rows, tmp_path)
        spec = write_spec(tmp_path / "job.yaml", uri, output, **QUICK_SHARDS)
        with Started("-m", "tests.support.engines", "slow", spec, **environment) as run:
            run.wait_until(lambda: len(list(store.list(f"{output}/data"))) > 2)
            server.kill()
            time.sleep(AWAY_S)  # how long it is away is what is tested
            server.restart()
            finished = run.wait()

        assert finished.code == 0, finished.err
        assert_whole_on_s3(store, output, rows, tmp_path, environment)


def test_of_two_drivers_that_begin_at_once_one_is_refused(
    store: Storage, s3_only: dict[str, str], tmp_path: Path
) -> None:
    """The other one makes everything."""
    output, rows = "s3://out/two", text_rows(40)
    uri = upload(store, "s3://inp/two/rows.parquet", rows, tmp_path)
    command = (
        "-m",
        "tests.support.engines",
        "slow",
        write_spec(tmp_path / "job.yaml", uri, output, **QUICK_SHARDS),
    )

    with Started(*command, **s3_only) as one, Started(*command, **s3_only) as other:
        both = sorted((one.wait(), other.wait()), key=lambda finished: finished.code)

    assert [finished.code for finished in both] == [0, 4], both
    assert f"another driver is using {output}: process " in both[1].err
    assert_whole_on_s3(store, output, rows, tmp_path, s3_only)


def test_a_driver_that_was_suspended_stops_when_another_has_taken_over(
    store: Storage, s3_only: dict[str, str], tmp_path: Path
) -> None:
    """With exit code 4; what the other one has written stays as it is."""
    output, rows = "s3://out/suspended", text_rows(120)
    uri = upload(store, "s3://inp/suspended/rows.parquet", rows, tmp_path)
    spec = write_spec(tmp_path / "job.yaml", uri, output, **QUICK_SHARDS)
    lease = f"{output}/_darkroom/driver.json"

    with Started("-m", "tests.support.engines", "slow", spec, **s3_only) as suspended:
        suspended.wait_until(lambda: len(list(store.list(f"{output}/data"))) > 2)
        suspended.signal(signal.SIGSTOP)
        # As if it had been suspended for longer than its lease holds.
        said = json.loads(store.read(lease))
        said["renewed_at"] -= LEASE_VALID_S + 1
        store.replace(lease, json.dumps(said).encode())
        with Started("-m", "tests.support.engines", "quick", spec, **s3_only) as run:
            successor = run.wait()
        made = {stored.uri: stored.etag for stored in store.list(output)}
        suspended.signal(signal.SIGCONT)
        stopped = suspended.wait()

    assert successor.code == 0, successor.err
    assert stopped.code == 4, stopped.err
    assert f"another driver has taken over {output}: process " in stopped.err
    assert {stored.uri: stored.etag for stored in store.list(output)} == made
    assert_whole_on_s3(store, output, rows, tmp_path, s3_only)


def test_drivers_killed_at_random_moments_in_a_storm_lose_and_double_no_row(
    store: Storage, s3_only: dict[str, str], tmp_path: Path
) -> None:
    """Again and again on a Ray that stays up, as `kubectl delete pod --force` does it to a driver."""
    rows = text_rows(120)
    uri = upload(store, "s3://inp/kills/rows.parquet", rows, tmp_path)
    spec = write_spec(tmp_path / "job.yaml", uri, "s3://out/kills", **QUICK_SHARDS)

    with serve_fault_proxy(s3_only["AWS_ENDPOINT_URL"]) as proxy:
        environment = s3_only | {"AWS_ENDPOINT_URL": proxy.url}
        with RayNodes(**environment) as nodes:
            nodes.add(num_cpus=2)
            proxy.break_by_chance(RATE, seed=2)
            command, joined = ("-m", "tests.support.engines"), environment | nodes.env
            killed = kill_drivers(
                lambda: Started(*command, "slow", spec, **joined),
                3,
                random.Random(3),
                lambda: len(list(store.list("s3://out/kills/data"))),
            )
            with Started(*command, "quick", spec, **joined) as run:
                finished = run.wait()

    assert killed == 3
    assert finished.code == 0, finished.err
    assert_whole_on_s3(store, "s3://out/kills", rows, tmp_path, s3_only)


def test_a_write_that_arrives_when_its_shard_was_made_by_another_worker_changes_nothing(
    store: Storage, s3_only: dict[str, str], tmp_path: Path
) -> None:
    """A worker is suspended while its part is under way; when the store hears of it, it refuses it."""
    output, rows = "s3://out/late", text_rows(24)
    uri = upload(store, "s3://inp/late/rows.parquet", rows, tmp_path)
    errors = {"storage_deadline_s": 6, "stall_timeout_s": 7}
    spec = write_spec(
        tmp_path / "job.yaml", uri, output, **QUICK_SHARDS, errors=errors, workers={"num": 1, "num_cpus": 1}
    )
    part = f"{output}/data/train-00000-of-00006.parquet"

    with serve_fault_proxy(s3_only["AWS_ENDPOINT_URL"]) as proxy:
        proxy.inject("hold", method="PUT", key="/data/train-00000")
        environment = s3_only | {"AWS_ENDPOINT_URL": proxy.url}
        with Started("-m", "tests.support.engines", "slow", spec, **environment) as run:
            run.wait_until(lambda: proxy.injected["hold"])
            worker = run.pids("ray::WorkerProcess")[0]
            os.kill(worker, signal.SIGSTOP)
            made = run.wait_until(lambda: store.stat(part))
            proxy.release()
            run.wait_until(lambda: any("train-00000" in line and "412" in line for line in proxy.answers))
            finished = run.wait()

    assert finished.code == 0, finished.err
    assert "died: it made no progress for 7 s" in finished.err
    assert store.stat(part) == made
    assert_whole_on_s3(store, output, rows, tmp_path, s3_only)

"""Darkroom on a Ray cluster that runs already: as a Ray job, and from outside."""

import json
import shutil
import sysconfig
import tempfile
import urllib.request
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from models.demo_cache import demo_checkpoint
from tests.support.canaries import CANARIES, leaks
from tests.support.ray_nodes import RAY
from tests.support.running import (
    ROOT,
    Finished,
    Started,
    assert_refused,
    darkroom,
    darkroom_here,
    free_ports,
    output_rows,
    parts,
    row_ids,
    text_rows,
    wait_until,
    write_rows,
    write_spec,
)

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
"""What protects a cluster's ports; every client shows it."""
# Without byte code, a folder that Ray has unpacked stays as it was shipped.
ENV = TOKEN | CANARIES | {"PYTHONDONTWRITEBYTECODE": "1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A head that has the CPU of one worker."""

    processes: Started
    address: str
    dashboard: str
    folder: Path
    """Its temporary files."""

    def submit(self, *arguments: object, name: str, wait: bool = True) -> Finished:
        """`ray job submit --working-dir . -- python -m jobs run ARGUMENTS`, to its end if `wait`."""
        options = ("--address", self.dashboard, "--submission-id", name, *(() if wait else ("--no-wait",)))
        run = ("python", "-m", "jobs", "run", *arguments)
        with Started(*RAY, "job", "submit", *options, "--working-dir", ".", "--", *run, **ENV) as started:
            return started.wait()

    def ask(self, path: str, method: str = "GET") -> str:
        """The dashboard's answer about `jobs/PATH`: what `ray job list`, `stop` and `logs` ask it for.

        Each of these commands takes a second of a processor, and a test that stops a job is not that quick.
        """
        headers = {"Authorization": f"Bearer {TOKEN['RAY_AUTH_TOKEN']}"}
        request = urllib.request.Request(f"{self.dashboard}/api/jobs/{path}", method=method, headers=headers)
        with urllib.request.urlopen(request) as answer:
            return answer.read().decode()


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python with all that darkroom needs and without darkroom, as the machines of cluster.yaml have it."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder)
    packages = next(folder.glob("lib/python*/site-packages"))
    for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(place).iterdir():
            if "darkroom" not in entry.name:
                (packages / entry.name).symlink_to(entry)
    return str(folder / "bin" / "python")


@pytest.fixture(scope="module")
def cluster(bare_python: str) -> Iterator[Cluster]:
    """`ray start --head` with a token, in a folder whose name is short enough for a socket."""
    folder = tempfile.mkdtemp(prefix="darkroom-ray-")
    port, dashboard_port, client_port = free_ports(3)
    ports = ("--port", port, "--dashboard-port", dashboard_port, "--ray-client-server-port", client_port)
    start = ("start", "--head", "--num-cpus", 1, "--temp-dir", folder, "--dashboard-agent-listen-port", 0)
    try:
        with Started(*RAY, *start, *ports, python=bare_python, **ENV) as processes:
            started = processes.wait()
            assert started.code == 0, started.err
            yield Cluster(
                processes=processes,
                address=f"127.0.0.1:{port}",
                dashboard=f"http://127.0.0.1:{dashboard_port}",
                folder=Path(folder),
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def demo(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> tuple[Finished, Path]:
    """The demo, submitted as a Ray job with a spec outside of the repository, and its output."""
    folder = tmp_path_factory.mktemp("demo")
    spec, output = folder / "outside.yaml", folder / "out"
    shutil.copyfile(ROOT / "configs" / "demo.yaml", spec)
    # --extend passes through; a job that has not begun begins with it.
    options = ("--wait", "--extend", "--address", cluster.dashboard, "--set", f"output.path={output}")
    return darkroom("submit", spec, *options, **ENV), output


def test_the_demo_runs_as_a_ray_job(demo: tuple[Finished, Path]) -> None:
    """`darkroom submit` brings code, spec and input; nothing else is installed or copied."""
    finished, output = demo

    assert finished.code == 0, finished.err
    assert "1 worker with 1 CPU\n" in finished.out
    assert "total: 45 rows ok, 0 filtered, 1 failed" in finished.out
    assert f"output: {output}\n" in finished.out
    assert len(output_rows(output)) == 47


def test_a_job_ships_what_it_needs_and_no_more(demo: tuple[Finished, Path], cluster: Cluster) -> None:
    """darkroom's packages and the spec."""
    resources = cluster.folder / "session_latest" / "runtime_resources"
    shipped = next(resources.glob("working_dir_files/*/outside.yaml")).parent
    names = {path.name for path in shipped.iterdir()}

    assert names == {"actors", "demo", "jobs", "models", "schemas", "outside.yaml", ".rayignore"}
    assert not list(shipped.rglob("__pycache__"))
    assert sum(path.stat().st_size for path in shipped.rglob("*")) < 15_000_000


def test_neither_the_jobs_metadata_nor_what_ray_writes_holds_a_secret(
    demo: tuple[Finished, Path], cluster: Cluster
) -> None:
    """Of those in the environment of the submitter and of the cluster; its own token included."""
    listed = cluster.ask("")
    files = [path for path in cluster.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    written = {str(path.relative_to(cluster.folder)): path.read_bytes() for path in files}

    submitted = json.loads(listed)[0]["submission_id"]
    assert any(place.endswith(f"job-driver-{submitted}.log") for place in written)
    assert leaks(written | {"job list": listed.encode()}) == []
    assert [place for place, data in written.items() if TOKEN["RAY_AUTH_TOKEN"].encode() in data] == []


def test_a_stopped_ray_job_goes_on_when_it_is_submitted_again(cluster: Cluster, tmp_path: Path) -> None:
    """`ray job stop` in its middle: what is committed stays as it is, the next job makes the rest."""
    output = tmp_path / "out"
    # The first part is there at once. The others have so many steps that a quick machine still works on them
    # when the job is stopped.
    rows = [row | {"num_inference_steps": 1 if i < 8 else 100} for i, row in enumerate(text_rows(20))]
    spec = write_spec(
        tmp_path / "job.yaml", write_rows(tmp_path / "rows.parquet", rows), output, workers={"num": 1}
    )

    submitted = cluster.submit(spec, name="first", wait=False)
    wait_until(lambda: bool(parts(output)))
    cluster.ask("first/stop", method="POST")
    wait_until(lambda: json.loads(cluster.ask("first"))["status"] not in ("PENDING", "RUNNING"))
    log = json.loads(cluster.ask("first/logs"))["logs"]
    made = {part: part.read_bytes() for part in parts(output)}
    again = cluster.submit(spec, name="second")

    assert submitted.code == 0
    assert "darkroom: interrupted; saved parts stay, run again to resume" in log
    assert 0 < len(made) < 3
    assert again.code == 0, again.out
    assert f"{len(made)} of 3 parts already saved" in again.out
    assert {part: part.read_bytes() for part in made} == made
    assert row_ids(output) == [row["row_id"] for row in rows]
    assert darkroom_here("verify", output).code == 0


def test_a_run_from_outside_joins_the_ray_that_ray_address_names(cluster: Cluster, tmp_path: Path) -> None:
    """It brings its code along, starts no Ray of its own, and leaves the one it used as it was. A relative
    output and a relative checkpoint lie below the driver's folder, whatever folder the workers are in, and
    workers build a demo checkpoint that they lack."""
    rows, output = text_rows(16), tmp_path / "out"
    (tmp_path / "relative").symlink_to(demo_checkpoint("sd"))
    spec = write_spec(
        tmp_path / "job.yaml",
        write_rows(tmp_path / "rows.parquet", rows[:8] + [row | {"model": "demo"} for row in rows[8:]]),
        "out",
        models={"relative": {"checkpoint": "relative"}, "demo": {"checkpoint": "demo:sd"}},
        routes={"text2img": {"model": "relative", "num_inference_steps": 2}},
        workers={"num": 1},
    )

    with Started("-m", "jobs", "run", spec, cwd=tmp_path, RAY_ADDRESS=cluster.address, **TOKEN) as run:
        wait_until(lambda: bool(parts(output)) or not run.pids())
        own_ray = run.pids("gcs_server")
        finished = run.wait()

    assert finished.code == 0, finished.err
    assert not own_ray
    assert row_ids(output) == [row["row_id"] for row in rows]
    assert {row["status"] for row in output_rows(output)} == {"ok"}
    assert cluster.processes.pids("gcs_server")


def test_a_relative_output_inside_a_ray_job_is_refused(tmp_path: Path) -> None:
    """It would lie in Ray's copy of the working directory, which Ray deletes."""
    environment = {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}", "RAY_ADDRESS": "127.0.0.1:1"}
    spec = write_spec(tmp_path / "job.yaml", tmp_path / "nowhere", "out/relative")

    finished = darkroom_here("run", spec, cwd=tmp_path, **environment)

    assert finished.code == 2
    assert "output.path is out/relative, a relative path: a Ray job would write to" in finished.err
    assert "Use s3:// or an absolute path" in finished.err


def test_submit_ends_with_the_jobs_exit_code(demo: tuple[Finished, Path], cluster: Cluster) -> None:
    """`darkroom submit --wait` prints the job's log; `ray job` itself would tell only 0 or 1."""
    changed = ("--set", f"output.path={demo[1]}", "--set", "seed=1")

    refused = darkroom(
        *("submit", "configs/demo.yaml", "--wait", "--address", cluster.dashboard, *changed), **TOKEN
    )

    assert refused.code == 4
    assert "seed: was 0, is now 1" in refused.out


def test_a_wrong_or_missing_token_is_told_in_one_line(cluster: Cluster, tmp_path: Path) -> None:
    """To those who submit and to those who join."""
    rows = write_rows(tmp_path / "rows.parquet", text_rows(2))
    spec = write_spec(tmp_path / "job.yaml", rows, tmp_path / "out")
    wrong = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64}
    submit = ("submit", "configs/demo.yaml", "--set", "output.path=/nowhere", "--address", cluster.dashboard)

    for refused in (
        darkroom(*submit, **wrong),
        darkroom(*submit, HOME=str(tmp_path)),
        darkroom("run", spec, RAY_ADDRESS=cluster.address, **wrong),
    ):
        assert_refused(
            refused, "Set RAY_AUTH_MODE=token here, and save the cluster's token in ~/.ray/auth_token"
        )

"""What `darkroom submit` sends, and what it refuses before anything is sent."""

import http.server
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ray._private.runtime_env.packaging import create_package

from jobs.fleet.shipped_folder import checked_size, shipped_folder
from schemas.errors import SpecError
from tests.support.running import assert_refused, darkroom_here, write_spec


@dataclass(frozen=True, slots=True)
class JobServer:
    """A job server of Ray that notes what it gets and starts nothing."""

    address: str
    packages: list[zipfile.ZipFile] = field(default_factory=list)
    jobs: list[dict[str, Any]] = field(default_factory=list)


@pytest.fixture
def job_server() -> Iterator[JobServer]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path == "/api/version"
            self._answer({"version": "4", "ray_version": "2.60"} if known else {}, 200 if known else 404)

        def do_PUT(self) -> None:
            noted.packages.append(zipfile.ZipFile(io.BytesIO(self._body())))
            self._answer({})

        def do_POST(self) -> None:
            noted.jobs.append(json.loads(self._body()))
            self._answer({"job_id": "job", "submission_id": "job"})

        def log_message(self, *arguments: object) -> None:
            pass

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers["Content-Length"]))

        def _answer(self, answer: dict[str, str], status: int = 200) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        noted = JobServer(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield noted
        server.shutdown()
        thread.join()


def test_a_spec_of_another_repository_is_shipped_with_darkrooms_code(
    job_server: JobServer, tmp_path: Path
) -> None:
    """Under a name that neither a package nor .gitignore has; with no other file of the user's repository."""
    (tmp_path / "private.txt").write_text("private")
    spec = write_spec(tmp_path / "jobs.log", "s3://bucket/rows", "s3://bucket/out")

    finished = darkroom_here(
        *("submit", "jobs.log", "--set", "seed=2", "--extend", "--address", job_server.address), cwd=tmp_path
    )

    assert finished.code == 0, finished.err
    (job,), (package,) = job_server.jobs, job_server.packages
    assert job["entrypoint"] == "python -m jobs run jobs.yaml --set seed=2 --extend"
    assert package.read("jobs.yaml") == spec.read_bytes()
    names = package.namelist()
    code = {"actors", "demo", "jobs", "models", "schemas"}
    assert {name.partition("/")[0] for name in names} == {*code, "jobs.yaml", ".rayignore"}
    assert {f"{name}/__init__.py" for name in code} | {"demo/rows.parquet"} <= {*names}
    assert not [name for name in names if "__pycache__" in name]
    size_bytes = sum(entry.file_size for entry in package.infolist())
    assert f"shipping darkroom's code and jobs.log: {size_bytes / 1e6:.1f} MB" in finished.out
    assert size_bytes < 15_000_000


def test_what_lies_beside_the_packages_is_not_shipped_nor_what_ignore_files_name(tmp_path: Path) -> None:
    """Where darkroom is installed, other packages lie beside its own, and nothing ignores byte code."""
    site_packages = tmp_path / "site-packages"
    for name in ("actors", "jobs", "other"):
        (site_packages / name / "__pycache__").mkdir(parents=True)
        for file in ("code.py", "notes.txt", "weights.bin", "__pycache__/code.pyc"):
            (site_packages / name / file).write_text(name)
    (site_packages / ".gitignore").write_text("notes.txt\n")
    (site_packages / ".rayignore").write_text("weights.bin\n")
    spec = write_spec(tmp_path / "job.yaml", "s3://bucket/rows", "s3://bucket/out")

    with shipped_folder(spec, [site_packages / "actors", site_packages / "jobs"]) as folder:
        create_package(str(folder), tmp_path / "package.zip", include_gitignore=True)
        size_bytes = checked_size(folder)

    package = zipfile.ZipFile(tmp_path / "package.zip")
    assert {*package.namelist()} == {"actors/code.py", "jobs/code.py", "job.yaml", ".rayignore"}
    assert size_bytes == sum(entry.file_size for entry in package.infolist())


def test_submit_refuses_relative_paths_before_it_asks_the_cluster(tmp_path: Path) -> None:
    """Nothing has been uploaded or started then."""
    nobody = ("--address", "http://127.0.0.1:1")
    spec = write_spec(tmp_path / "job.yaml", "s3://bucket/rows", "out/relative")
    output = darkroom_here("submit", spec, *nobody)
    mixed = '["s3://bucket/rows", "rows/*.csv"]'
    outside = ("--set", f"input.path={mixed}", "--set", "output.path=/out")
    input_ = darkroom_here("submit", spec, *nobody, *outside, cwd=tmp_path)
    # The rows of darkroom's demo are shipped, those of another folder of this name are not.
    demo = ("--set", "input.path=demo/rows.parquet", "--set", "output.path=/out")
    other_demo = darkroom_here("submit", spec, *nobody, *demo, cwd=tmp_path)
    unanswered = darkroom_here("submit", spec, *nobody, *demo)

    assert_refused(output, "output.path is out/relative, a relative path")
    assert_refused(
        input_, "input.path is rows/*.csv, a relative path", "Use s3://, hf://, or an absolute path"
    )
    assert_refused(other_demo, "input.path is demo/rows.parquet, a relative path")
    assert_refused(unanswered, "http://127.0.0.1:1")


def test_a_folder_that_the_job_server_would_refuse_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the names of the largest files. What compresses well, or is not shipped, does not count."""
    monkeypatch.setattr("jobs.fleet.shipped_folder.DASHBOARD_CLIENT_MAX_SIZE", 10_000)
    (tmp_path / "text").write_bytes(bytes(100_000))
    (tmp_path / "ignored").mkdir()
    (tmp_path / ".rayignore").write_text("ignored/\n")
    noise = bytes(i * i * 2654435761 >> 16 & 255 for i in range(20_000))
    (tmp_path / "ignored" / "noise").write_bytes(noise)
    small = checked_size(tmp_path)
    (tmp_path / "images").mkdir()
    for index in range(12):
        (tmp_path / "images" / f"{index}.png").write_bytes(noise[: 12_000 + index])

    with pytest.raises(SpecError, match="Ray's job server takes") as caught:
        checked_size(tmp_path)

    assert small == 100_000 + len("ignored/\n")
    named = [line.split()[-1] for line in str(caught.value).splitlines()[1:]]
    assert named == ["text", *(f"images/{index}.png" for index in range(11, 2, -1))]

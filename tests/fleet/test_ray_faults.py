"""Faults of Ray end in one line with the way out, and in exit code 2: darkroom has no bug."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.exceptions import AuthenticationError

from jobs.fleet.cluster import connected
from jobs.fleet.ray_faults import ray_faults
from schemas.errors import SpecError
from tests.support.running import assert_refused, darkroom, text_rows, write_rows, write_spec


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    return write_spec(
        tmp_path / "job.yaml", write_rows(tmp_path / "rows.parquet", text_rows(2)), tmp_path / "out"
    )


@pytest.fixture
def web_server() -> Iterator[str]:
    """A server for web pages, as a dashboard is one."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_folder_for_temporary_files_with_a_long_name_is_named(spec: Path, tmp_path: Path) -> None:
    """The names of Ray's sockets are cut after 107 bytes."""
    folder = tmp_path / ("x" * 90)
    folder.mkdir()

    assert_refused(darkroom("run", spec, RAY_TMPDIR=str(folder)), "cannot start Ray", "set RAY_TMPDIR")


def test_the_dashboards_address_is_not_that_of_the_cluster(spec: Path, web_server: str) -> None:
    """Ray would wait for a quarter of an hour."""
    assert_refused(darkroom("run", spec, RAY_ADDRESS=web_server), f"RAY_ADDRESS is {web_server}", "host:6379")


@pytest.mark.parametrize(
    ("error", "way_out"),
    [
        (
            RuntimeError(
                "Version mismatch: The cluster was started with:\n    Ray: 2.9.0\n    Python: 3.10.1"
            ),
            "Ray: 2.9.0 Python: 3.10.1. Install the cluster's versions of Ray and Python here",
        ),
        (ConnectionError("no answer"), "no answer. If it asks for a token: Set RAY_AUTH_MODE=token here"),
        (
            AuthenticationError("Token is wrong. Ensure that the token for the cluster is available"),
            "Set RAY_AUTH_MODE=token here, and save the cluster's token in ~/.ray/auth_token",
        ),
    ],
)
def test_what_ray_raises_becomes_one_line(
    error: Exception, way_out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the way out."""

    def init(**_: object) -> None:
        raise error

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    with pytest.raises(SpecError) as caught, connected():
        pass

    assert str(caught.value).startswith("cannot start Ray: ")
    assert way_out in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bug_is_not_taken_for_rays_fault() -> None:
    """An error without a known way out stays what it is."""
    with pytest.raises(RuntimeError, match="a bug"), ray_faults("start Ray"):
        raise RuntimeError("a bug")

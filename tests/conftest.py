"""Fixtures that several test files share."""

import gc
import os
import uuid
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import settings

# Set before any Hugging Face library is imported, because it reads these once: tests use no network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
# Set before torch is imported: two test processes with a thread for each core mostly wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import huggingface_hub

from actors.checkpoints.component_files import files_on_hub
from actors.storage.objects import Storage
from actors.storage.stores import open_storage
from tests.support.fake_hub import use_address
from tests.support.ray_nodes import RayNodes
from tests.support.s3.fault_proxy import FaultProxy, serve_fault_proxy
from tests.support.s3.on_s3 import env_of
from tests.support.s3.s3_server import S3Server, skip_without_server

pytest_plugins = ["tests.support.clean_ends"]

# CI runs the same examples every time, so a change fails only by its own faults. Local runs try new examples.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that start programs and stores, which take a minute: none is the last to end."""
    items.sort(key=lambda item: item.path.parent.name not in ("fleet", "program", "storage"))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for no garbage while torch and diffusers are imported, nor later among what their modules hold."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    """A Ray cluster whose only node has room for two workers, which the tests of one file share.

    A driver joins it with the environment `nodes.env`. Its workers see nothing of the driver's environment.
    """
    # It does not stay for the whole session: a cluster without work takes a seventh of a processor.
    # Its head is its only node: for each node, Ray starts processes that take four seconds of a processor.
    with RayNodes(head_cpus=2) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """A real S3 server with the buckets `inp` and `out`, shared by the tests of one process."""
    skip_without_server()
    with S3Server() as server:
        yield server


@pytest.fixture(scope="module")
def s3_only(s3: S3Server) -> dict[str, str]:
    """The environment of a program that uses this server and sees no other AWS settings."""
    return env_of(s3)


@pytest.fixture(scope="module")
def store(s3_only: dict[str, str]) -> Iterator[Storage]:
    """The server's storage in this process, for tests whose programs run in other processes."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_only.items():
            patch.setenv(name, value)
        yield open_storage("s3://out")


@pytest.fixture
def s3_env(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The same server, with this process's environment set to use it and no other AWS settings."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in env_of(s3).items():
        monkeypatch.setenv(name, value)
    return s3


@pytest.fixture
def s3_faults(s3_env: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy in front of the server that injects faults into requests; the environment points at it."""
    with serve_fault_proxy(s3_env.env["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty output folder: one test runs on disk and one on S3."""
    if request.param == "local":
        return str(tmp_path / "out")
    request.getfixturevalue("s3_env")
    return f"s3://out/{uuid.uuid4().hex}"


@pytest.fixture
def storage(folder: str) -> Storage:
    """The storage of that folder."""
    return open_storage(folder)


@pytest.fixture
def s3_folder() -> str:
    """A new folder on S3."""
    return f"s3://out/{uuid.uuid4().hex}"


@pytest.fixture
def faulty(s3_faults: FaultProxy, s3_folder: str) -> Storage:
    """S3 storage behind the fault proxy, with short timeouts so that tests end soon."""
    return open_storage(s3_folder, timeout_s=5, deadline_s=30)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this process's own; the Hub itself is out of reach in tests."""
    files_on_hub.cache_clear()
    folder = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture
def use_hub(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """What lets this process use the Hub at an address, as `hub_env` lets another one."""

    yield partial(use_address, monkeypatch)
    huggingface_hub.close_session()

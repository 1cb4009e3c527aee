"""Where an adapter's file is: on the disk, on S3 or on the Hub; and how it comes to a worker's machine."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.checkpoints.adapters import adapter_files
from actors.checkpoints.adapters.adapter_files import find_adapter, on_this_machine
from actors.checkpoints.component_files import files_on_hub
from actors.storage.objects import Storage
from actors.storage.stores import Stores, open_storage
from schemas.errors import SpecError, StorageError
from schemas.spec.adapter_spec import AdapterSpec
from schemas.systems.model_card import AdapterFile
from tests.adapters.lora_forms import write
from tests.support.fake_hub import commit_of, put_in_cache, serve_hub
from tests.support.s3.s3_server import S3Server

KEY = "models.xl.loras.chalk"
DEADLINE_S = 5.0
NOBODY = "http://127.0.0.1:1"
"""An address that refuses."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, in a process that knows nothing of the Hub."""
    files_on_hub.cache_clear()
    monkeypatch.setenv("DARKROOM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def lora(path: Path, number: float = 1) -> Path:
    """A file of safetensors, whose content depends on the number."""
    return write(path, {"unet.x.lora_A.weight": np.full((4, 8), number, np.float32)})


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def find(**spec: Any) -> AdapterFile:
    found = find_adapter(KEY, "chalk", AdapterSpec.model_validate(spec), Stores())
    assert [*found.header.tensors] == ["unet.x.lora_A.weight"]
    return found.file


def refusal(**spec: Any) -> str:
    with pytest.raises(SpecError) as error:
        find(**spec)
    assert str(error.value).startswith(KEY)
    return str(error.value)


@pytest.mark.parametrize(
    "spec",
    [
        {"path": "sole/chalk.safetensors"},
        {"path": "sole"},
        {"path": ".", "subfolder": "sole"},
        {"path": "sole", "weight_name": "chalk.safetensors"},
        {"path": ".", "subfolder": "several", "weight_name": "chalk.safetensors"},
    ],
)
def test_a_local_file_is_named_itself_or_by_its_folder(
    spec: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder may have other files beside it. Relative paths start at the current folder."""
    chalk = lora(tmp_path / "sole" / "chalk.safetensors")
    (tmp_path / "sole" / "README.md").touch()
    shutil.copytree(tmp_path / "sole", tmp_path / "several")
    lora(tmp_path / "several" / "ink.safetensors", 2)
    monkeypatch.chdir(tmp_path)

    file = find(**spec)

    assert Path(file.path).parent.name in ("sole", "several")
    assert (file.name, file.sha256, file.size_bytes) == ("chalk", sha256(chalk), chalk.stat().st_size)
    assert (file.weight_name, file.subfolder, file.revision) == (None, None, None)
    assert on_this_machine(file, DEADLINE_S) == Path(file.path)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"path": "none.safetensors"}, "does not exist; a repository of the Hub is owner/name"),
        ({"path": "./none/chalk.safetensors"}, "none/chalk.safetensors does not exist"),
        ({"path": "./several"}, "several .safetensors files; name one with `weight_name`: chalk.safe"),
        ({"path": "./several", "weight_name": "none.safetensors"}, "none.safetensors does not exist"),
        (
            {"path": "./pickles"},
            "has no .safetensors file; it has old.bin, but pickles can run code, and are not read",
        ),
        ({"path": "./pickles", "weight_name": "old.bin"}, "old.bin is a pickle, which can run code"),
        ({"path": "./pickles/old.bin"}, "old.bin is a pickle, which can run code"),
        ({"path": "./pickles/old.pt"}, "old.pt is a pickle, which can run code"),
        ({"path": "./pickles/old.ckpt"}, "old.ckpt is a pickle, which can run code"),
        ({"path": "./several/notes.txt"}, "does not end in .safetensors"),
        ({"path": "./several/chalk.safetensors", "weight_name": "x.safetensors"}, ".weight_name: "),
        ({"path": "./several/chalk.safetensors", "subfolder": "x"}, ".subfolder: "),
        ({"path": "./several/../several"}, "'..' is not allowed"),
        (
            {"path": "./pickled.safetensors"},
            "it is a pickle, whatever its name says, and pickles can run code; load it where",
        ),
        ({"path": "./cut.safetensors"}, "it is cut off or damaged"),
        ({"path": "./cut-header.safetensors"}, "is cut off in it"),
        (
            {"path": "./pointer.safetensors"},
            "it does not begin with the header of a safetensors file",
        ),
        ({"path": "./folder.safetensors"}, "has no .safetensors file"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_the_way_out(
    spec: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything of it is loaded."""
    content = lora(tmp_path / "several" / "chalk.safetensors").read_bytes()
    lora(tmp_path / "several" / "ink.safetensors", 2)
    (tmp_path / "several" / "notes.txt").touch()
    (tmp_path / "pickles").mkdir()
    for ending in ("bin", "pt", "ckpt"):
        (tmp_path / "pickles" / f"old.{ending}").write_bytes(b"\x80\x04.")
        if ending != "bin":
            (tmp_path / "pickles" / f"old.{ending}").rename(tmp_path / f"old.{ending}")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "pickled.safetensors").write_bytes(b"\x80\x04" + bytes(100))
    (tmp_path / "cut.safetensors").write_bytes(content[:-1])
    (tmp_path / "cut-header.safetensors").write_bytes(content[:30])
    (tmp_path / "pointer.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    )
    monkeypatch.chdir(tmp_path)

    assert says in refusal(**spec)


def test_a_file_with_another_content_on_a_worker_is_refused(tmp_path: Path) -> None:
    """Every machine needs the driver's file; the message names the machine's."""
    file = find(path=str(lora(tmp_path / "chalk.safetensors")))

    lora(tmp_path / "chalk.safetensors", 2)
    with pytest.raises(SpecError, match=r"LoRA `chalk`: .*chalk.safetensors on .* does not have the content"):
        on_this_machine(file, DEADLINE_S)
    Path(file.path).unlink()
    with pytest.raises(SpecError, match=r"LoRA `chalk`: the file .*chalk.safetensors does not exist on "):
        on_this_machine(file, DEADLINE_S)


@pytest.fixture
def remote(s3_env: S3Server, s3_folder: str) -> tuple[Storage, str]:
    """A storage on S3, and a folder of the test's own in it."""
    return open_storage(s3_folder), s3_folder


@pytest.mark.parametrize(
    "spec", [{"path": "/chalk.safetensors"}, {"path": ""}, {"path": "", "weight_name": "chalk.safetensors"}]
)
def test_an_object_is_named_itself_or_by_its_folder(
    spec: dict[str, Any], remote: tuple[Storage, str], tmp_path: Path, cache: Path
) -> None:
    """It is read once on a machine for its hash, and copied once to the cache of a worker's machine."""
    storage, folder = remote
    chalk = lora(tmp_path / "chalk.safetensors")
    storage.create(f"{folder}/chalk.safetensors", chalk.read_bytes(), {})
    storage.create(f"{folder}/more/ink.safetensors", b"", {})

    file = find(**spec | {"path": folder + spec["path"]})
    brought = on_this_machine(file, DEADLINE_S)
    again = on_this_machine(file, DEADLINE_S)

    assert file.path == f"{folder}/chalk.safetensors"
    assert (file.sha256, file.size_bytes) == (sha256(chalk), chalk.stat().st_size)
    assert brought == again == cache / "adapters" / f"{file.sha256}.safetensors"
    assert brought.read_bytes() == chalk.read_bytes()
    assert [*brought.parent.iterdir()] == [brought]


def test_the_hash_of_an_object_is_read_again_if_the_object_changes(
    remote: tuple[Storage, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ETag tells."""
    storage, folder = remote
    uri = f"{folder}/chalk.safetensors"
    first, second = lora(tmp_path / "a.safetensors"), lora(tmp_path / "b.safetensors", 2)
    storage.replace(uri, first.read_bytes())
    reads: list[str] = []
    copied = adapter_files._copied
    monkeypatch.setattr(adapter_files, "_copied", lambda uri, *rest: reads.append(uri) or copied(uri, *rest))

    hashes = [find(path=uri).sha256, find(path=uri).sha256]
    storage.replace(uri, second.read_bytes())
    hashes.append(find(path=uri).sha256)

    assert hashes == [sha256(first), sha256(first), sha256(second)]
    assert reads == [uri, uri]


def test_an_object_that_has_changed_since_the_plan_is_refused(
    remote: tuple[Storage, str], tmp_path: Path, cache: Path
) -> None:
    """Nothing of it stays in the cache."""
    storage, folder = remote
    uri = f"{folder}/chalk.safetensors"
    storage.replace(uri, lora(tmp_path / "a.safetensors").read_bytes())
    file = find(path=uri)

    storage.replace(uri, lora(tmp_path / "b.safetensors", 2).read_bytes())
    with pytest.raises(SpecError, match=r"LoRA `chalk`: s3://.* does not have the content"):
        on_this_machine(file, DEADLINE_S)
    storage.delete(uri)
    with pytest.raises(SpecError, match=r"LoRA `chalk`: there is no object s3://"):
        on_this_machine(file, DEADLINE_S)

    assert [*(cache / "adapters").iterdir()] == []


def test_a_damaged_copy_of_an_object_is_copied_again(remote: tuple[Storage, str], tmp_path: Path) -> None:
    storage, folder = remote
    chalk = lora(tmp_path / "chalk.safetensors")
    storage.create(f"{folder}/chalk.safetensors", chalk.read_bytes(), {})
    file = find(path=f"{folder}/chalk.safetensors")

    on_this_machine(file, DEADLINE_S).write_bytes(b"damaged")

    assert on_this_machine(file, DEADLINE_S).read_bytes() == chalk.read_bytes()


def test_a_cache_that_cannot_be_written_is_the_operators_matter(
    remote: tuple[Storage, str], tmp_path: Path, cache: Path
) -> None:
    storage, folder = remote
    storage.create(f"{folder}/chalk.safetensors", lora(tmp_path / "a.safetensors").read_bytes(), {})
    cache.write_text("not a folder")

    file = find(path=f"{folder}/chalk.safetensors")

    with pytest.raises(StorageError, match="cannot be written"):
        on_this_machine(file, DEADLINE_S)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/none.safetensors", "there is no object s3://"),
        ("/old.bin", "old.bin is a pickle, which can run code"),
        ("", "has no .safetensors file; it has old.bin, but pickles can run code"),
        ("/cut.safetensors", "it is cut off or damaged"),
        ("?token=x", "query strings are not supported"),
    ],
)
def test_an_object_that_cannot_be_used_is_refused(
    path: str, says: str, remote: tuple[Storage, str], tmp_path: Path
) -> None:
    storage, folder = remote
    storage.create(f"{folder}/old.bin", b"\x80\x04.", {})
    cut = lora(tmp_path / "chalk.safetensors").read_bytes()[:-1]
    if path == "/cut.safetensors":
        storage.create(f"{folder}{path}", cut, {})

    assert says in refusal(path=folder + path)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A repository of one LoRA at its top, and of two in a folder."""
    lora(tmp_path / "published" / "chalk.safetensors")
    lora(tmp_path / "published" / "more" / "ink.safetensors", 2)
    lora(tmp_path / "published" / "more" / "wash.safetensors", 3)
    return tmp_path / "published"


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ({"path": "some/loras"}, "chalk.safetensors"),
        ({"path": "some/loras/chalk.safetensors"}, "chalk.safetensors"),
        ({"path": "some/loras", "weight_name": "chalk.safetensors"}, "chalk.safetensors"),
        ({"path": "some/loras/more/ink.safetensors"}, "more/ink.safetensors"),
        (
            {"path": "some/loras", "subfolder": "more", "weight_name": "ink.safetensors"},
            "more/ink.safetensors",
        ),
        (
            {"path": "some/loras", "weight_name": "more/ink.safetensors", "revision": "v1"},
            "more/ink.safetensors",
        ),
    ],
)
def test_a_file_on_the_hub_is_pinned_and_only_its_header_is_read(
    spec: dict[str, Any], name: str, published: Path, use_hub: Callable[[str], None], hub_cache: Path
) -> None:
    """The worker then downloads the file of that commit."""
    with serve_hub({"some/loras": published}) as (address, requests):
        use_hub(address)

        file = find(**spec)
        planned = [*requests]
        brought = on_this_machine(file, DEADLINE_S)

    assert file.path == "some/loras"
    assert f"{file.subfolder or ''}/{file.weight_name}".lstrip("/") == name
    assert (file.revision, file.sha256) == (commit_of(published), sha256(published / name))
    assert all("resolve" not in request or name in request for request in planned)
    assert not any(path.name == Path(name).name for path in hub_cache.rglob("*")) or planned != requests
    assert brought.read_bytes() == (published / name).read_bytes()


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (
            {"path": "some/loras", "subfolder": "more"},
            "several .safetensors files; name one with `weight_name`",
        ),
        ({"path": "some/loras", "weight_name": "none.safetensors"}, "has no file none.safetensors"),
        ({"path": "some/loras", "weight_name": "old.bin"}, "old.bin is a pickle"),
        ({"path": "some/loras", "revision": "0" * 40}, "has no branch, tag or commit"),
        ({"path": "other/loras"}, "neither a folder here nor a Hub repository"),
        ({"path": "some/loras/more/ink.safetensors", "weight_name": "ink.safetensors"}, ".weight_name: "),
    ],
)
def test_what_is_not_on_the_hub_is_refused(
    spec: dict[str, Any], says: str, published: Path, use_hub: Callable[[str], None]
) -> None:
    with serve_hub({"some/loras": published}) as (address, _):
        use_hub(address)

        assert says in refusal(**spec)


def test_a_file_in_the_hubs_cache_needs_no_network(
    published: Path, use_hub: Callable[[str], None], hub_cache: Path
) -> None:
    """Neither the driver nor the worker."""
    put_in_cache(hub_cache, "some/loras", published)
    use_hub(NOBODY)

    file = find(path="some/loras", subfolder="more", weight_name="ink.safetensors")

    assert (file.revision, file.sha256) == (commit_of(published), sha256(published / "more/ink.safetensors"))
    brought = on_this_machine(file, DEADLINE_S)
    assert brought.read_bytes() == (published / "more/ink.safetensors").read_bytes()

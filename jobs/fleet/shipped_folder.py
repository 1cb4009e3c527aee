"""The folder that a Ray job takes along: darkroom's code and the spec."""

import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE
from ray._private.runtime_env.packaging import _dir_travel

import actors
import jobs
import models
import schemas
from models.demo_cache import builder_folder
from schemas.errors import SpecError
from schemas.spec.job_spec import InputSpec
from schemas.wording.amounts import size_text

NUM_NAMED = 10
"""Files that the message names."""
_BLOCK_BYTES = 1 << 20


def code_folders() -> list[Path]:
    """The folders of darkroom's packages, which the driver and the workers of a job need."""
    packages = (schemas, models, actors, jobs)
    return [*(Path(package.__path__[0]) for package in packages), builder_folder()]


@contextmanager
def shipped_folder(spec: Path, packages: Sequence[Path]) -> Iterator[Path]:
    """A temporary folder that contains the packages, as links, and the spec.

    Ray packs what links lead to. It leaves out what .gitignore and .rayignore beside the packages name.
    """
    ignore_files = [packages[0].parent / name for name in (".gitignore", ".rayignore")]
    rules = [file.read_text("utf-8") for file in ignore_files if file.is_file()]
    with tempfile.TemporaryDirectory(prefix="darkroom-") as name:
        folder = Path(name)
        for package in packages:
            (folder / package.name).symlink_to(package)
        (folder / ".rayignore").write_text("\n".join(["__pycache__/", *rules]), "utf-8")
        (folder / shipped_name(spec)).write_bytes(spec.read_bytes())
        yield folder


def shipped_name(spec: Path) -> str:
    """The spec's name in the shipped folder; neither a package nor an ignored file has this suffix."""
    return f"{spec.stem}.yaml"


def refuse_input_left_behind(spec: InputSpec) -> None:
    """Raise SpecError for a relative input.path outside of darkroom's code; the demo's rows are inside."""
    code = [folder.resolve() for folder in code_folders()]
    for path in [spec.path] if isinstance(spec.path, str) else spec.path:
        if "://" in path or path.startswith(("/", "~")):
            continue
        if not any(Path(path).resolve().is_relative_to(folder) for folder in code):
            raise SpecError(
                f"input.path is {path}, a relative path: the cluster gets darkroom's code and the spec, and "
                "no other file. Use s3://, hf://, or an absolute path that every machine can read"
            )


def checked_size(folder: Path) -> int:
    """The bytes of the files that Ray packs; SpecError if the job server of Ray 2.60 would answer 413."""
    files = _shipped_files(folder)
    size_bytes = sum(size for _, size in files)
    # To compress takes seconds, and what is small enough as it is needs none of it.
    if size_bytes <= DASHBOARD_CLIENT_MAX_SIZE:
        return size_bytes
    packed_bytes = sum(_packed_bytes(path) for path, _ in files)
    if packed_bytes <= DASHBOARD_CLIENT_MAX_SIZE:
        return size_bytes
    largest = sorted(files, key=lambda file: -file[1])[:NUM_NAMED]
    listed = "\n".join(f"  {size_text(size)}  {path.relative_to(folder)}" for path, size in largest)
    raise SpecError(
        f"darkroom's code and the spec, which the job takes along, have {size_text(packed_bytes)} as a "
        f"package, and Ray's job server takes {size_text(DASHBOARD_CLIENT_MAX_SIZE)}. Move what is not code "
        f"elsewhere, or name it in .rayignore beside {code_folders()[0]}; the largest files:\n{listed}"
    )


def _shipped_files(folder: Path) -> list[tuple[Path, int]]:
    """The files that Ray packs, with their sizes; .gitignore and .rayignore name those that it leaves out."""
    files: list[tuple[Path, int]] = []

    def note(path: Path) -> None:
        if path.is_file():
            files.append((path, path.stat().st_size))

    _dir_travel(folder, [], note, include_gitignore=True)
    return files


def _packed_bytes(path: Path) -> int:
    packer, size_bytes = zlib.compressobj(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            size_bytes += len(packer.compress(block))
    return size_bytes + len(packer.flush())

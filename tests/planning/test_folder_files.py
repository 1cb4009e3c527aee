"""Facts about which files of a folder are read, and which are passed over with a word."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.storage.local_disk import LocalStorage
from actors.storage.objects import Tail
from actors.storage.stores import Stores, open_storage
from jobs.survey import folder_files
from jobs.survey.input_paths import find_files, input_paths
from schemas.errors import SpecError
from tests.support.in_process import job_spec
from tests.support.s3.s3_server import S3Server

PARQUET_NAMES = ("A.PARQUET", "b.parq", "c.Pq", "d.parquet", "day=1/20261130_0_e", "f.bin", "part-00000")
OTHER_NAMES = ("day=1/notes.txt", "empty", "g.parquet.gz", "labels.csv")
HIDDEN_NAMES = ("_SUCCESS", ".d.parquet.crc", "_tmp/h.parquet")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files as Athena, Spark and people leave them."""
    folder = tmp_path / "in"
    pq.write_table(pa.table({"prompt": ["p"]}), tmp_path / "one")
    for name in (*PARQUET_NAMES, *OTHER_NAMES, *HIDDEN_NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"PAR" if name == "empty" else b"no Parquet")
    for name in (*PARQUET_NAMES, "_tmp/h.parquet"):
        shutil.copy(tmp_path / "one", folder / name)
    return folder


def found(path: str) -> tuple[list[str], list[str]]:
    """(names, notes): the input files of a folder below it, and what is said of the others."""
    spec, stores = job_spec(Path("x"), Path("y"), input={"path": path}), Stores()
    files, notes = find_files(input_paths(spec.input, stores), stores)
    return [file.uri.removeprefix(f"{path}/") for file in files], notes


def test_parquet_is_read_whatever_its_name_and_the_rest_is_named(folder: Path) -> None:
    names, notes = found(str(folder))

    assert names == sorted(PARQUET_NAMES)
    (note,) = notes
    assert note.startswith(f"not read in {folder}: 4 files, such as ")
    assert all(name in note for name in OTHER_NAMES)
    assert note.endswith("; a file that is compressed as a whole must be unpacked")


def test_objects_are_recognised_as_files_are(folder: Path, s3_env: S3Server, s3_folder: str) -> None:
    storage = open_storage(s3_folder)
    for path in filter(Path.is_file, folder.rglob("*")):
        storage.create(f"{s3_folder}/{path.relative_to(folder)}", path.read_bytes(), {})

    names, (note,) = found(s3_folder)

    assert names == sorted(PARQUET_NAMES)
    assert "4 files, such as" in note


def test_a_folder_of_parquet_alone_says_nothing(folder: Path) -> None:
    """Hidden files are bookkeeping of the program that wrote the others."""
    for name in OTHER_NAMES:
        (folder / name).unlink()

    assert found(str(folder)) == (sorted(PARQUET_NAMES), [])


def test_a_folder_without_parquet_is_refused_with_what_it_has(folder: Path) -> None:
    for name in (*PARQUET_NAMES, "labels.csv", "day=1/notes.txt"):
        (folder / name).unlink()

    with pytest.raises(SpecError, match=r"there is no file with rows in .*/in, only 2 files, such as .*"):
        found(str(folder))


@pytest.mark.parametrize(("parquet_at", "expected_looks"), [(None, 3), (2, 5), (4, 3)])
def test_of_many_files_of_one_ending_only_some_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parquet_at: int | None, expected_looks: int
) -> None:
    """A folder may have millions of pictures. If one of the first is Parquet, all are looked at."""
    monkeypatch.setattr(folder_files, "MAX_LOOKS", 3)
    looks: list[str] = []

    class Storage(LocalStorage):
        def read_tail(self, uri: str, num_bytes: int) -> Tail:
            looks.append(uri)
            return super().read_tail(uri, num_bytes)

    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(
            b"it ends with PAR1" if number == parquet_at else b"a picture"
        )
    storage = Storage(temp_dir=str(tmp_path / "tmp"))

    parquet, others = folder_files.split_parquet(storage.list(str(tmp_path)), storage)

    assert len(looks) == expected_looks
    assert [Path(file.uri).stem for file in parquet] == (["2"] if parquet_at == 2 else [])
    assert len(parquet) + len(others) == 5

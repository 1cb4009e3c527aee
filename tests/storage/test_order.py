"""What comes before what, so that a crash between two steps leaves nothing half done."""

import fcntl
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from actors.storage.local_disk import LocalStorage
from actors.storage.output import Output
from jobs.output.job_record import claim
from jobs.output.tally import Tally
from jobs.planning.plan import make_plan
from jobs.reports.finish import finish
from jobs.reports.success import is_finished
from jobs.survey.survey import make_survey
from schemas.errors import StorageError
from schemas.output_layout import OWN_FOLDER, SUCCESS, TEMPORARY_FOLDER
from tests.support.engines import GreyEngine
from tests.support.in_process import job_spec, make, write_rows
from tests.support.running import wait_until
from tests.support.side_effects import RecordingStorage, record_system_calls


def test_a_file_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut leaves a whole part or none; afterwards the name is made durable too."""
    storage = LocalStorage(temp_dir=str(tmp_path / "tmp"))
    events = record_system_calls(monkeypatch)

    storage.create(str(tmp_path / "data" / "part"), b"content", {})
    created = [*events]
    events.clear()
    storage.replace(str(tmp_path / "report"), b"content")
    replaced = [*events]
    events.clear()
    stored = storage.stat(str(tmp_path / "report"))
    assert stored is not None
    storage.exchange(str(tmp_path / "report"), b"other", {}, etag=stored.etag)
    exchanged = [*events]
    events.clear()
    storage.delete(str(tmp_path / "report"))

    assert created == ["fsync file", "link", "fsync folder"]
    assert replaced == ["fsync file", "replace", "fsync folder"]
    assert exchanged == ["fsync file", "replace", "fsync folder"]
    assert events == ["fsync folder"]


def is_waited_for(folder: Path) -> bool:
    """Whether somebody waits for the lock of the folder."""
    inode = f":{folder.stat().st_ino} "
    return any("->" in line and inode in line for line in Path("/proc/locks").read_text().splitlines())


@pytest.mark.parametrize("meanwhile", [b"first", b"other"])
def test_an_exchange_waits_for_the_one_before_it(tmp_path: Path, meanwhile: bytes) -> None:
    """A file system compares nothing when it renames: only the lock keeps two retries apart, and what was
    written while one waited counts."""
    storage = LocalStorage(temp_dir=str(tmp_path / "tmp"))
    uri = str(tmp_path / "part")
    storage.create(uri, b"first", {})
    stored = storage.stat(uri)
    assert stored is not None
    other = os.open(tmp_path / "tmp", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)

    with ThreadPoolExecutor(1) as threads:
        exchange = threads.submit(storage.exchange, uri, b"second", {}, etag=stored.etag)
        wait_until(lambda: exchange.done() or is_waited_for(tmp_path / "tmp"))
        ended_early = exchange.done()
        storage.replace(uri, meanwhile)
        os.close(other)
        exchanged = exchange.result(timeout=20)

    assert not ended_early
    assert exchanged == (meanwhile == b"first")
    assert storage.read(uri) == (b"second" if exchanged else b"other")


def test_success_is_said_last_and_only_over_all_parts(tmp_path: Path) -> None:
    """Whoever sees `_SUCCESS` sees every report too; with a part missing nobody sees it."""
    path = write_rows(tmp_path / "in.parquet", [{"prompt": str(i)} for i in range(3)])
    spec = job_spec(path, tmp_path / "out", batching={"shard_rows": 1})
    storage = RecordingStorage(temp_dir=str(tmp_path / "out" / OWN_FOLDER / TEMPORARY_FOLDER))
    output = Output(storage, str(tmp_path / "out"))
    record = claim(output, *make_plan(make_survey(spec)))
    make(spec, GreyEngine())
    figures = Tally(rows_total=3, rows_before=0).figures()
    missing = next((tmp_path / "out" / "data").iterdir())
    content = missing.read_bytes()

    missing.unlink()
    with pytest.raises(StorageError, match="has 2 of 3 parts"):
        finish(output, record, figures)
    finished_early = is_finished(output)
    missing.write_bytes(content)
    storage.written.clear()
    finish(output, record, figures)

    assert not finished_early
    assert storage.written[-1] == SUCCESS
    assert {"contact-sheet.html", "README.md", "summary.json", "manifest.jsonl"} <= {*storage.written[:-1]}

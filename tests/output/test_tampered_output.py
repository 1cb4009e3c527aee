"""An output that was damaged or changed since: each command names the file and what is wrong with it."""

import json
import os
import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from actors.storage.output import Output
from actors.storage.stores import open_storage
from jobs.__main__ import main
from jobs.output.job_record import MAX_RECORD_BYTES, claim
from jobs.output.tally import Tally
from jobs.planning.plan import make_plan
from jobs.reports.finish import finish
from jobs.survey.survey import make_survey
from schemas.job import fingerprint_of
from schemas.output_layout import JOB_RECORD, LEASE, SUMMARY
from tests.support.in_process import job_spec, make, write_rows

Record = dict[str, Any]
Change = Callable[[Record], object]

ROWS: list[Record] = [
    {"row_id": "a", "prompt": "x", "num_inference_steps": 1},
    {"row_id": "b", "prompt": "x", "num_inference_steps": 1},
    {"row_id": "bad", "prompt": None},
]
MANY = 10**15


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a spec and the finished output of three parts, `out`."""
    folder = tmp_path_factory.mktemp("finished")
    rows = write_rows(folder / "in.parquet", ROWS)
    spec = job_spec(rows, folder / "out", batching={"shard_rows": 1}, errors={"max_rate": 1.0})
    output = spec.output.path
    storage = open_storage(output)
    record = claim(Output(storage, output), *make_plan(make_survey(spec)))
    make(spec)
    finish(Output(storage, output), record, Tally(rows_total=3, rows_before=0).figures())
    (folder / "job.yaml").write_text(yaml.safe_dump(spec.model_dump(mode="json", exclude_none=True)))
    return folder


class Desk:
    """A copy of the output, and the program at hand."""

    def __init__(
        self,
        spec: Path,
        output: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        self.spec = spec
        self.output = output
        self._capsys = capsys
        self._monkeypatch = monkeypatch

    @property
    def record(self) -> Path:
        return self.output / JOB_RECORD

    @property
    def part(self) -> Path:
        """The first."""
        return min((self.output / "data").iterdir())

    def change_record(self, change: Change) -> None:
        found = json.loads(self.record.read_text())
        change(found)
        self.record.write_text(json.dumps(found))

    def change_part(self, change: Callable[[pa.Table], pa.Table], **footer: bytes | None) -> None:
        """`footer`: other values for darkroom's keys, None for keys that are to be gone."""
        table = pq.read_table(self.part)
        keys = {**table.schema.metadata, **{f"darkroom.{key}".encode(): footer[key] for key in footer}}
        keys = {key: value for key, value in keys.items() if value is not None}
        pq.write_table(change(table).replace_schema_metadata(keys), self.part)

    def ask(self, command: str) -> tuple[int, str, str]:
        """How `darkroom COMMAND` ends, what it prints, and what it says of errors."""
        about = [str(self.output)]
        if command in ("run", "retry"):
            about = [str(self.spec), "--set", f"output.path={self.output}"]
        self._monkeypatch.setattr(sys, "argv", ["darkroom", command, *about])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = self._capsys.readouterr()
        return code, said.out, said.err


@pytest.fixture
def desk(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Desk:
    shutil.copytree(finished / "out", tmp_path / "out")
    return Desk(finished / "job.yaml", tmp_path / "out", capsys, monkeypatch)


def refused(desk: Desk, command: str, name: str, says: str, code: int = 4) -> None:
    """One paragraph with the file's name and what is wrong."""
    ended, _, err = desk.ask(command)

    assert ended == code, (command, err)
    assert err.startswith("darkroom: ")
    assert name in err, command
    assert says in err, (command, err)
    assert len(err) < 2_000


EVERY = ("status", "report", "verify", "run", "retry")


def test_an_untouched_output_is_taken_by_every_command(desk: Desk) -> None:
    """Status, verify, report and run find nothing to do or to complain of."""
    for command in ("status", "report", "verify", "run"):
        assert desk.ask(command)[::2] == (0, ""), command


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "Invalid JSON"),
        (b"{", "Invalid JSON"),
        (b"\xff", "Invalid JSON"),
        (b"[" * 200_000, "recursion limit exceeded"),
        (b"1" * 6_000, "number out of range"),
        (b"[]", "it should be an object"),
        (b"null", "it should be an object"),
        (b"NaN", "it should be an object"),
        (b"{}", "`format` is missing"),
        (b'{"format": [1]}', "`format` is [1]; it should be a valid integer"),
        (b'{"format": 2}', "has format 2; this darkroom reads 1"),
        (b'{"format": 1}', "`name` is missing"),
    ],
)
def test_a_record_of_another_kind_is_refused(desk: Desk, content: bytes, says: str) -> None:
    """Whatever stands in job.json."""
    desk.record.write_bytes(content)

    for command in EVERY:
        refused(desk, command, JOB_RECORD, says)


@pytest.mark.parametrize(
    "key", ["name", "fingerprint", "identity", "spec", "models", "files", "num_shards", "num_bad"]
)
@pytest.mark.parametrize("value", [None, "x", [1], "gone"])
def test_a_record_with_another_value_is_refused(desk: Desk, key: str, value: object) -> None:
    """Or without the key."""
    desk.change_record(lambda record: record.pop(key) if value == "gone" else record.update({key: value}))

    for command in EVERY:
        refused(desk, command, JOB_RECORD, f"`{key}")


def file_with(**changes: Any) -> Change:
    return lambda record: record["files"][0].update(changes)


def identity_with(**changes: Any) -> Change:
    """With a fingerprint that belongs to it."""

    def change(record: Record) -> None:
        record["identity"].update(changes)
        record["fingerprint"] = fingerprint_of(record["identity"])

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda record: record.update(num_shards=4), "`num_shards` is 4, but `files` gives 3"),
        (lambda record: record.update(num_shards=-1), "`num_shards` is -1; it should be greater than or"),
        (lambda record: record.update(num_shards=1.5), "`num_shards` is 1.5; it should be a valid integer"),
        (
            lambda record: record.update(num_bad={"x": "y"}),
            '`num_bad.x` is "y"; it should be a valid integer',
        ),
        (lambda record: record.update(name="\x1b[31m"), "`name` is not that of `spec`, test"),
        (lambda record: record.update(fingerprint="../x"), "`fingerprint` is not that of `identity`"),
        (lambda record: record["identity"].clear(), "`fingerprint` is not that of `identity`"),
        (identity_with(columns=None), "`identity.columns` does not name columns"),
        (identity_with(columns={"prompt": 1}), "`identity.columns` does not name columns"),
        (lambda record: record["models"].clear(), "`models` are none, but those of `spec` are sd"),
        (lambda record: record["models"]["sd"].pop("family"), "`models.sd.family` is missing"),
        (
            lambda record: record["spec"]["batching"].update(shard_rows=0),
            "`spec.batching.shard_rows` is 0; it should be greater than or equal to 1",
        ),
        (file_with(num_rows=MANY), "do not add up to its 1,000,000,000,000,000 rows"),
        (file_with(rows_by_model={"sd": MANY}), "do not add up to its 3 rows"),
        (file_with(rows_by_model={"sd": -3}), "`files.0.rows_by_model.sd` is -3; it should be greater"),
        (file_with(rows_by_model={"zz": 3}), "names zz, which `models` does not"),
        (file_with(repeated={"sd": "x"}), '`files.0.repeated.sd` is "x"'),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(desk: Desk, change: Change, says: str) -> None:
    """With what it says and what it should."""
    desk.change_record(change)

    for command in EVERY:
        refused(desk, command, JOB_RECORD, says)


def more_rows_than_there_are(record: Record) -> None:
    record["files"][0].update(num_rows=MANY, rows_by_model={"sd": MANY})
    record["num_shards"] = MANY


def test_a_record_of_more_rows_than_the_input_has_is_found(desk: Desk) -> None:
    """It agrees with itself: a list of all its shards would have no end."""
    shutil.rmtree(desk.output / "data")
    desk.change_record(more_rows_than_there_are)

    refused(desk, "run", JOB_RECORD, "in.parquet has 3 rows, not the 1,000,000,000,000,000 of")
    refused(desk, "verify", JOB_RECORD, "in.parquet has 3 rows, not the 1,000,000,000,000,000 of", code=1)


def test_rows_of_other_models_than_recorded_are_found(desk: Desk) -> None:
    """The sum is right, and not one row is where the record has it."""
    desk.change_record(file_with(rows_by_model={"": 3}))

    refused(desk, "verify", JOB_RECORD, "does not match the rows of")


def test_columns_that_the_input_has_not_are_found(desk: Desk) -> None:
    """The record was changed together with its fingerprint."""
    desk.change_record(identity_with(columns={"prompt": "nowhere"}))

    refused(desk, "verify", JOB_RECORD, "has no column nowhere", code=1)


def later_keys(record: Record) -> None:
    """As a later version of the same format may write."""
    for place in (
        record,
        record["spec"],
        record["spec"]["batching"],
        record["models"]["sd"],
        record["files"][0],
    ):
        place["later"] = {"x": 1}


def earlier_keys(record: Record) -> None:
    """As the first versions wrote."""
    del record["files"][0]["repeated"], record["models"]["sd"]["vae_factor"], record["spec"]["prompt_weights"]


@pytest.mark.parametrize("change", [later_keys, earlier_keys])
def test_records_of_other_versions_are_read(desk: Desk, change: Change) -> None:
    """Keys that are not known are passed over; those that came later have defaults."""
    desk.change_record(change)

    for command in ("status", "report", "verify", "run"):
        assert desk.ask(command)[::2] == (0, ""), command


def a_link_to_an_endless_file(place: Path) -> None:
    place.symlink_to("/dev/zero")


def a_link_to_nothing(place: Path) -> None:
    place.symlink_to("/no/such/place")


def gigabytes(place: Path) -> None:
    """Of which the disk keeps none."""
    with place.open("wb") as file:
        file.truncate(MAX_RECORD_BYTES + 1)


@pytest.mark.parametrize("name", [JOB_RECORD, LEASE, SUMMARY])
@pytest.mark.parametrize(
    ("put", "says"),
    [
        (a_link_to_an_endless_file, "is a pipe, a socket or a device, and only files can be read"),
        (os.mkfifo, "is a pipe, a socket or a device, and only files can be read"),
        (Path.mkdir, "is a folder, and only files can be read"),
        (a_link_to_nothing, "is a broken link; move it away"),
        (gigabytes, f"has {MAX_RECORD_BYTES + 1:,} bytes; at most "),
    ],
)
def test_reading_a_control_file_ends(desk: Desk, name: str, put: Callable[[Path], object], says: str) -> None:
    """Whatever stands in its place."""
    (desk.output / SUMMARY).unlink()
    (desk.output / name).unlink(missing_ok=True)
    put(desk.output / name)

    if name == LEASE:
        # What it says saves work alone: status goes on without.
        assert desk.ask("status")[0] == 0
    else:
        refused(desk, "status", name, says)


@pytest.mark.parametrize(
    "content",
    [b"", b"junk", b"\xff", b"null", b"[]", b"{}", b"[" * 100_000, b'{"fingerprint": 1}'],
)
def test_a_summary_that_cannot_be_read_is_named_with_the_way_out(desk: Desk, content: bytes) -> None:
    """It is only a report."""
    (desk.output / SUMMARY).write_bytes(content)

    for command in ("status", "report"):
        refused(desk, command, SUMMARY, "It is only a report: run the job again, which writes it anew")
    assert desk.ask("run")[0] == 0
    assert desk.ask("status")[0] == 0


def counts(**changes: Any) -> bytes:
    return json.dumps({"ok": 1, "filtered": 0, "failed": 0, "images": 1, **changes}).encode()


@pytest.mark.parametrize(
    ("footer", "says"),
    [
        ({"counts": None}, "its footer has no `darkroom.counts`"),
        ({"counts": b"[]"}, "it should be an object"),
        ({"counts": b"null"}, "it should be an object"),
        ({"counts": b"[" * 100_000}, "recursion limit exceeded"),
        ({"counts": b"9" * 5_000}, "number out of range"),
        ({"counts": b'{"ok": 1}'}, "`filtered` is missing"),
        ({"counts": counts(ok="x")}, '`ok` is "x"; it should be a valid integer'),
        ({"counts": counts(ok=-5)}, "`ok` is -5; it should be greater than or equal to 0"),
        ({"counts": counts().replace(b'"ok": 1', b'"ok": 1e999')}, "`ok` is Infinity; it should be a valid"),
        ({"error_codes": None}, "its footer has no `darkroom.error_codes`"),
        ({"error_codes": b'{"x": "y"}'}, '`x` is "y"; it should be a valid integer'),
    ],
)
def test_a_footer_that_cannot_be_counted_is_refused(
    desk: Desk, footer: dict[str, bytes | None], says: str
) -> None:
    """By what adds the footers up; verify has it among the faults."""
    (desk.output / SUMMARY).unlink()
    desk.change_part(lambda table: table, **footer)

    for command in ("status", "report", "run", "retry"):
        refused(desk, command, desk.part.name, says)
    refused(desk, "verify", desk.part.stem, says, code=1)


@pytest.mark.parametrize(
    ("footer", "says"),
    [
        ({"counts": counts(ok=0, failed=1)}, "its footer says 0 ok; its rows have 1"),
        ({"counts": counts(ok=0, failed=1)}, "its footer says 1 failed; its rows have 0"),
        ({"counts": counts(images=7)}, "its footer says 7 images; its rows have 1"),
        ({"error_codes": b'{"out_of_memory": 1}'}, "its footer says error codes {'out_of_memory': 1}"),
        ({"job": b"\xff\xfe"}, "says it is shard 'train-00000-of-00003' of job '\\ufffd\\ufffd'"),
    ],
)
def test_a_footer_that_lies_is_found(desk: Desk, footer: dict[str, bytes | None], says: str) -> None:
    """Its numbers are held against the rows."""
    desk.change_part(lambda table: table, **footer)

    refused(desk, "verify", desk.part.stem, says.encode().decode("unicode_escape"), code=1)


def with_column(name: str, values: pa.Array) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(table.schema.get_field_index(name), name, values)


def without(name: str) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.drop_columns([name])


NO_COLUMNS: list[tuple[Callable[[pa.Table], pa.Table], str]] = [
    (lambda table: pa.table({"a": [1]}), "column `row_id` is missing"),
    (without("status"), "column `status` is missing"),
    (without("image_sha256"), "column `image_sha256` is missing"),
    (without("image_index"), "column `image_index` is missing"),
    (with_column("image", pa.array([1])), "column `image` is int64, not struct<bytes: binary, path: string>"),
    (with_column("status", pa.array([1])), "column `status` is int64, not string"),
    (lambda table: table.append_column("status", table["status"]), "there are 2 columns `status`"),
]


@pytest.mark.parametrize(("change", "says"), NO_COLUMNS)
def test_a_part_with_other_columns_is_found(
    desk: Desk, change: Callable[[pa.Table], pa.Table], says: str
) -> None:
    """Verify has it among the faults; report and retry refuse it."""
    desk.change_part(change)

    refused(desk, "verify", desk.part.stem, says, code=1)
    for command in ("report", "retry"):
        refused(desk, command, desk.part.name, says)


@pytest.mark.parametrize(
    ("name", "kind"), [("row_id", pa.string()), ("image_index", pa.int64()), ("status", pa.string())]
)
def test_a_row_without_what_each_has_is_found(desk: Desk, name: str, kind: pa.DataType) -> None:
    """The sheet is drawn without it."""
    desk.change_part(with_column(name, pa.array([None], kind)))

    refused(desk, "verify", desk.part.stem, f"has no {name}", code=1)
    assert desk.ask("report")[0] == 0


def test_a_text_that_is_no_utf8_is_found(desk: Desk) -> None:
    """Arrow does not look at it; whoever makes a text of it does."""
    damaged = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff\xfe"], pa.binary()).buffers())
    desk.change_part(with_column("task", damaged))

    refused(desk, "verify", desk.part.stem, "cannot be read: 'utf-8' codec can't decode", code=1)


@pytest.mark.parametrize("path", [None, "/dev/zero", "/etc/hostname", "a\0b", "images/../../x"])
def test_a_part_makes_verify_read_nothing_else(desk: Desk, path: str | None) -> None:
    """Its images are in it; a path is no more than their name. The contact sheet opens none of them too."""
    kind = pq.read_schema(desk.part).field("image").type
    desk.change_part(with_column("image", pa.array([{"bytes": None, "path": path}], kind)))

    refused(desk, "verify", desk.part.stem, "its bytes are not in the part", code=1)
    assert desk.ask("report")[0] == 0


def bomb() -> bytes:
    """A PNG of more pixels than there is memory for, by its header."""
    header = struct.pack(">II5B", 2**31 - 1, 2**31 - 1, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def test_an_image_of_impossible_size_is_not_decoded(desk: Desk) -> None:
    """Its header tells."""
    kind = pq.read_schema(desk.part).field("image").type
    desk.change_part(with_column("image", pa.array([{"bytes": bomb(), "path": "a.png"}], kind)))

    refused(desk, "verify", desk.part.stem, "pixels are more than a row may ask for", code=1)


def test_a_text_that_is_no_utf_8_ends_a_report_with_a_word(desk: Desk) -> None:
    """Which `verify` says more of."""
    damaged = pa.array([b"\xff\xfe"], pa.binary()).view(pa.string())
    desk.change_part(with_column("prompt", damaged))

    refused(desk, "report", str(desk.output), "has a text that is not valid UTF-8")


def test_what_is_said_of_an_endless_text_has_an_end(desk: Desk) -> None:
    """Megabytes in an id would fill a log."""
    desk.change_part(with_column("row_id", pa.array(["x" * 5_000_000])))

    code, _, said = desk.ask("verify")

    assert code == 1
    assert len(said) < 20_000


def test_status_writes_control_characters_out(desk: Desk) -> None:
    """A terminal obeys them."""
    (desk.output / SUMMARY).unlink()
    desk.change_part(lambda table: table, error_codes=json.dumps({"\x1b[2J": 1}).encode())

    code, out, _ = desk.ask("status")

    assert code == 0
    assert "1 \\x1b[2J" in out
    assert "\x1b" not in out

"""Facts about jobs whose input is not Parquet: what is stored, and how they go on."""

import gzip
import json
import shutil
import signal
import tempfile
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.storage.local_disk import LocalStorage
from actors.storage.objects import MAX_PUT_BYTES
from actors.storage.output import Output, open_output
from actors.storage.stores import open_storage
from jobs.intake.parquet_copies import CopyFolder, refuse_large_copy
from jobs.survey.survey import make_survey
from schemas.errors import RefusedError, SpecError
from schemas.spec.job_spec import JobSpec
from tests.support.in_process import drawn_image, job_spec, printed_by_verify
from tests.support.running import Started, output_rows, write_spec
from tests.support.s3.s3_server import S3Server
from tests.support.side_effects import Executioner
from tests.support.simulation.in_process_driver import InProcessDriver

NUM_ROWS = 7
"""In four parts."""
FIRST_COPY = 5
"""The writes before that of the first copy: those of the probe and of the lease."""


def spec_of(path: Path | str, output: Path | str) -> JobSpec:
    return job_spec(
        Path(path),
        Path(output),
        input={"path": str(path)},
        output={"path": str(output)},
        batching={"shard_rows": 2},
        errors={"max_rate": 1.0},
    )


def write_csv(path: Path, num_rows: int = NUM_ROWS, first: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = (f'"owl {number}, grey",{number}\n' for number in range(first, first + num_rows))
    path.write_text("".join(["prompt,seed\n", *rows]))
    return path


def copies(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "out" / "_darkroom" / "input").glob("*"))


def outcomes(folder: Path) -> list[tuple[object, object, object]]:
    return sorted((row["row_id"], row["prompt"], row["seed"]) for row in output_rows(folder / "out"))


def test_a_job_reads_a_copy_that_lies_in_its_output(tmp_path: Path) -> None:
    """Rows are named after the source. The output is whole without it, and wherever it is moved."""
    source = write_csv(tmp_path / "rows.csv")
    driver = InProcessDriver(spec_of(source, tmp_path / "out"))

    driver.run()

    assert outcomes(tmp_path) == [(f"rows.csv#{i}", f"owl {i}, grey", i) for i in range(NUM_ROWS)]
    (copy,) = copies(tmp_path)
    assert copy.startswith("rows.csv-")
    assert "copied as Parquet: 1 file (rows.csv), " in driver.printed
    source.unlink()
    (tmp_path / "out").rename(tmp_path / "moved")
    assert "verified" in printed_by_verify(job_spec(source, tmp_path / "moved"))


def test_a_job_of_text_makes_the_images_of_one_of_parquet(tmp_path: Path) -> None:
    """With the same ids, byte for byte."""
    ids = [f"{i:03d}" for i in range(5)]
    table = {"id": ids, "prompt": [f"owl {i}" for i in ids], "seed": [*range(5)]}
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")
    lines = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    images = {}

    for name in ("rows.parquet", "rows.jsonl.gz"):
        spec = spec_of(tmp_path / name, tmp_path / name.replace(".", "-") / "out")
        InProcessDriver(spec).run()
        rows = output_rows(Path(spec.output.path))
        images[name] = [(row["row_id"], row["seed"], row["image"]["bytes"]) for row in rows]

    assert len(images["rows.parquet"]) == 5
    assert images["rows.parquet"] == images["rows.jsonl.gz"]


def test_a_driver_may_be_killed_before_any_of_its_first_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first copy, between two, and before the record: the next driver makes the same rows."""
    for name in ("a.csv", "b.csv"):
        write_csv(tmp_path / "in" / name, first=10 * (name == "b.csv"))
    output, executioner, left = tmp_path / "out", Executioner(monkeypatch), []

    for num_writes in range(FIRST_COPY, FIRST_COPY + 3):
        driver = InProcessDriver(spec_of(tmp_path / "in", tmp_path / "out"))
        assert executioner.kills(output, driver.run, num_writes)
        left.append((len(copies(tmp_path)), (output / "_darkroom" / "job.json").exists()))
        driver.run()
        assert [row[2] for row in outcomes(tmp_path)] == [*range(7), *range(10, 17)]
        assert len(copies(tmp_path)) == 2
        shutil.rmtree(output)

    assert left == [(0, False), (1, False), (2, False)]


def test_a_driver_that_is_killed_as_it_copies_leaves_the_output_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies are made in a folder for temporary files, which the next driver removes, and no living one's."""
    write_csv(tmp_path / "rows.csv", 400_000)
    spec = write_spec(tmp_path / "job.yaml", tmp_path / "rows.csv", tmp_path / "out")
    (temporary := tmp_path / "tmp").mkdir()

    with Started("-m", "jobs", "run", spec, TMPDIR=str(temporary)) as run:
        run.wait_until(lambda: [*temporary.glob("darkroom-input-*/*")])
        run.signal(signal.SIGKILL)
        run.wait()

    assert [*tmp_path.glob("out/**/*.parquet")] == []
    assert len([*temporary.iterdir()]) == 1
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    first, second = CopyFolder(), CopyFolder()
    assert len([*temporary.iterdir()]) == 2
    first.remove()
    second.remove()
    assert [*temporary.iterdir()] == []
    assert not (tmp_path / "out" / "_darkroom" / "job.json").exists()


def test_a_job_that_has_begun_needs_no_second_copy(tmp_path: Path) -> None:
    """It goes on with the rows that it began with, and a source that has changed is refused."""
    source = write_csv(tmp_path / "rows.csv")
    driver = InProcessDriver(spec_of(source, tmp_path / "out"))
    driver.run()
    before = copies(tmp_path)
    (tmp_path / "out" / "data" / "train-00001-of-00004.parquet").unlink()

    driver.run()

    assert driver.printed.count("copied as Parquet") == 1
    assert copies(tmp_path) == before
    assert len(outcomes(tmp_path)) == NUM_ROWS
    write_csv(source, NUM_ROWS + 1)
    with pytest.raises(RefusedError, match=r"rows\.csv has changed \(was 124 bytes, is now 140 bytes\)"):
        driver.run()
    source.write_text(source.read_text()[:124].replace("grey", "blue"))
    with pytest.raises(RefusedError, match=r"rows\.csv has changed \(its hash was \w{12}, is now \w{12}\)"):
        driver.run()
    assert copies(tmp_path) == before


def test_a_copy_that_the_store_cannot_take_is_refused_by_its_size(tmp_path: Path) -> None:
    """The message is about the input, not about parts. A store that takes pieces takes it."""

    class WithoutPieces(LocalStorage):
        def takes_pieces(self, uri: str) -> bool:
            return False

    refuse_large_copy(
        "rows.parquet", MAX_PUT_BYTES, Output(WithoutPieces(temp_dir=str(tmp_path)), str(tmp_path))
    )
    refuse_large_copy("rows.parquet", MAX_PUT_BYTES + 1, open_output(str(tmp_path)))

    with pytest.raises(SpecError, match=r"input.path: .*rows.parquet, has 5\.4 GB.* into several files"):
        refuse_large_copy(
            "rows.parquet", MAX_PUT_BYTES + 1, Output(WithoutPieces(temp_dir=str(tmp_path)), str(tmp_path))
        )


def test_a_copy_that_was_deleted_is_missed(tmp_path: Path) -> None:
    """By the driver before it does anything."""
    driver = InProcessDriver(spec_of(write_csv(tmp_path / "rows.csv"), tmp_path / "out"))
    driver.run()
    (copy,) = (tmp_path / "out" / "_darkroom" / "input").iterdir()
    copy.unlink()

    with pytest.raises(RefusedError, match=r"the copy of an input file, was deleted"):
        driver.run()


def test_a_job_grows_by_text_files(tmp_path: Path) -> None:
    """Only the new file is copied."""
    write_csv(tmp_path / "in" / "a.csv")
    driver = InProcessDriver(spec_of(tmp_path / "in", tmp_path / "out"))
    driver.run()
    write_csv(tmp_path / "in" / "b.csv", 2, first=50)

    driver.run(extend=True)

    assert [name[:6] for name in copies(tmp_path)] == ["a.csv-", "b.csv-"]
    assert "copied as Parquet: 1 file (b.csv)" in driver.printed
    assert outcomes(tmp_path)[-2:] == [("b.csv#0", "owl 50, grey", 50), ("b.csv#1", "owl 51, grey", 51)]
    assert "verified" in printed_by_verify(driver.spec)


@pytest.mark.parametrize(
    ("names", "read"),
    [
        (["rows.parquet", "labels.csv"], ["rows.parquet"]),
        (["a.csv", "b.csv.gz", "picture.png", "_hidden.csv", ".more.csv"], ["a.csv", "b.csv.gz"]),
        (["sub/a.csv", "a.json"], ["sub/a.csv"]),
    ],
)
def test_a_folder_is_its_parquet_files_or_its_text_files(
    tmp_path: Path, names: list[str], read: list[str]
) -> None:
    """A table beside Parquet files is about them, as before. What is passed over is named."""
    folder = tmp_path / "in"
    for name in names:
        path = write_csv(folder / name)
        if name.endswith(".gz"):
            path.write_bytes(gzip.compress(path.read_bytes()))
        if name.endswith(".parquet"):
            pq.write_table(pa.table({"prompt": ["owl"]}), path)

    survey = make_survey(spec_of(folder, tmp_path / "out"))

    assert [file.stored.uri.removeprefix(f"{folder}/") for file in survey.files] == read
    others = [name for name in names if name not in read and name[0] not in "_."]
    assert [note for note in survey.notes if note.startswith("not read in")] == [
        f"not read in {folder}: 1 file, such as {name}" for name in others
    ]


def test_a_folder_with_several_formats_is_refused(tmp_path: Path) -> None:
    """A README.txt has no prompts: the message says how to choose."""
    write_csv(tmp_path / "in" / "rows.csv")
    (tmp_path / "in" / "README.txt").write_text("read me")

    with pytest.raises(
        SpecError, match=r"several formats, such as README.txt, rows.csv; name those .*pattern"
    ):
        InProcessDriver(spec_of(tmp_path / "in", tmp_path / "out")).run()


def test_rows_of_text_may_name_images_beside_their_file(tmp_path: Path) -> None:
    """A relative path begins in the folder of the source, not in that of its copy."""
    (tmp_path / "in" / "pictures").mkdir(parents=True)
    (tmp_path / "in" / "pictures" / "owl.png").write_bytes(drawn_image()["bytes"])
    (tmp_path / "in" / "rows.csv").write_text(
        "id,task,prompt,image\na,img2img,an owl,pictures/owl.png\nb,text2img,a fox,\nc,img2img,x,/etc/a\n"
        "d,img2img,x,none.png\n"
    )

    driver = InProcessDriver(spec_of(tmp_path / "in" / "rows.csv", tmp_path / "out"))
    driver.run()

    assert "rows.csv line 5: unreadable_uri" in driver.printed
    rows = sorted((row["row_id"], row["status"], row["error_code"]) for row in output_rows(tmp_path / "out"))
    assert rows == [
        ("a", "ok", None),
        ("b", "ok", None),
        ("c", "failed", "disallowed_uri"),
        ("d", "failed", "unreadable_uri"),
    ]


def test_text_in_a_bucket_is_copied_to_the_bucket_of_the_output(s3_env: S3Server) -> None:
    """And read there by the workers."""
    name = uuid.uuid4().hex
    source, output = f"s3://inp/{name}/rows.csv.gz", f"s3://out/{name}"
    storage = open_storage(source)
    storage.create(source, gzip.compress(b"prompt,seed\nan owl,1\na fox,2\n"), {})
    driver = InProcessDriver(spec_of(source, output))

    driver.run()

    (copy,) = storage.list(f"{output}/_darkroom/input")
    assert copy.uri.startswith(f"{output}/_darkroom/input/rows.csv.gz-")
    assert "2 of 2 input rows have exactly one outcome" in printed_by_verify(driver.spec)

"""Where rows may read their images from: beside the input, and where the spec says."""

from pathlib import Path

import pyarrow as pa
import pytest

from actors.images.image_uris import resolve
from schemas.errors import RowError, SpecError
from schemas.spec.spec_file import load_spec
from tests.support.engines import GreyEngine
from tests.support.in_process import drawn_image, job_spec, make, write_rows
from tests.support.running import write_spec


@pytest.mark.parametrize(
    ("uri", "folders", "place"),
    [
        ("a.png", [], "s3://inp/rows/a.png"),
        ("s3://inp/pictures/a.png", [], "s3://inp/pictures/a.png"),
        ("s3://other/shown/a.png", ["s3://other/shown"], "s3://other/shown/a.png"),
        ("s3://other/shown/a.png", ["s3://other"], "s3://other/shown/a.png"),
    ],
)
def test_a_row_reads_the_inputs_bucket_and_the_folders_that_the_spec_names(
    uri: str, folders: list[str], place: str
) -> None:
    """By URI, or by a path beside the input."""
    assert resolve(uri, "s3://inp/rows/in.parquet", folders) == place


@pytest.mark.parametrize(
    ("uri", "folders"),
    [
        ("s3://other/a.png", []),
        ("s3://inp-2/a.png", []),
        ("s3://other/shown-not/a.png", ["s3://other/shown"]),
        ("s3://other/shown", ["s3://other/shown"]),
        ("/etc/passwd", ["s3://other"]),
        ("s3://inp/../other/a.png", []),
    ],
)
def test_a_row_reads_no_other_bucket_whatever_the_workers_may(uri: str, folders: list[str]) -> None:
    """The image would come out with the job's own."""
    with pytest.raises(RowError) as caught:
        resolve(uri, "s3://inp/rows/in.parquet", folders)

    assert caught.value.code == "disallowed_uri"


PART = "data/train-00003-of-00005.parquet"


def test_the_images_of_an_output_are_found_by_its_parts(tmp_path: Path) -> None:
    """A part as input: its paths begin in the output, where no other file is open to its rows."""
    image = "images/train-00003-of-00005/a.png"

    assert resolve(image, f"{tmp_path}/{PART}") == f"{tmp_path}/{image}"
    assert resolve(image, f"s3://inp/{PART}") == f"s3://inp/{image}"
    assert resolve(image, f"{tmp_path}/data/rows.parquet") == f"{tmp_path}/data/{image}"
    assert resolve(image, f"{tmp_path}/rows/{PART[5:]}") == f"{tmp_path}/rows/{image}"
    assert resolve("a.png", f"{tmp_path}/{PART}") == f"{tmp_path}/data/a.png"


@pytest.mark.parametrize(
    "uri",
    ["images/../secret.png", "images/link.png", "/{0}/secret.png", "images-2/a.png/../../../secret.png"],
)
def test_a_part_as_input_opens_nothing_but_the_images_of_its_output(tmp_path: Path, uri: str) -> None:
    """Anybody may have named a file like a part."""
    (tmp_path / "images").mkdir()
    (tmp_path / "secret.png").write_bytes(drawn_image()["bytes"])
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "secret.png")

    with pytest.raises(RowError) as caught:
        resolve(uri.format(tmp_path), f"{tmp_path}/{PART}")

    assert caught.value.code == "disallowed_uri"


def test_an_output_of_image_files_is_the_input_of_another_job_wherever_it_was_moved(tmp_path: Path) -> None:
    """The plan looks at the images, and the workers read them; `verify` does too."""
    prompts = [{"row_id": f"a/{i}", "prompt": "x"} for i in range(3)]
    first = job_spec(
        write_rows(tmp_path / "rows.parquet", prompts),
        tmp_path / "first",
        output={"path": str(tmp_path / "first"), "images": "files"},
    )
    make(first, GreyEngine())
    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()
    (tmp_path / "first").rename(moved)
    spec = job_spec(
        moved / "data",
        tmp_path / "second",
        input={"path": str(moved / "data"), "columns": {"task": None}},
        default_route="img2img",
    )

    made = make(spec, GreyEngine())

    assert [row["status"] for row in made.rows] == ["ok"] * 3, made.rows
    assert [row["row_id"] for row in made.rows] == ["a/0", "a/1", "a/2"]


def test_local_folders_can_be_named_too(tmp_path: Path) -> None:
    """What a link in one of them leads to is still outside; the message says what would allow it."""
    for name in ("rows", "shown", "hidden"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(drawn_image()["bytes"])
    (tmp_path / "shown" / "link.png").symlink_to(tmp_path / "hidden" / "a.png")
    shown = tmp_path / "shown"
    uris = ["a.png", f"{shown}/a.png", f"{shown}/link.png", f"{shown}/../shown/a.png"]
    rows = [{"row_id": uri, "prompt": "x", "task": "img2img", "image": uri} for uri in uris]
    path = write_rows(tmp_path / "rows" / "in.parquet", rows, {"image": pa.string()})

    spec = job_spec(path, tmp_path / "out", input={"path": str(path), "pictures": [str(shown)]})
    made = make(spec, GreyEngine())

    assert [row["error_code"] for row in made.rows] == [None, None, "disallowed_uri", "disallowed_uri"]
    assert "nor in a folder that input.pictures names" in made.rows[2]["error_message"]


@pytest.mark.parametrize(
    ("folder", "says"),
    [
        ("gs://bucket/pictures", "gs:// is not supported; give an absolute path or an s3:// URI"),
        ("pictures", "'pictures' is relative; give an absolute path or an s3:// URI"),
        ("http://host/pictures", "http:// is not supported; give an absolute path or an s3:// URI"),
    ],
)
def test_a_folder_that_is_not_wholly_named_is_refused(tmp_path: Path, folder: str, says: str) -> None:
    """With its place in the file."""
    path = write_spec(tmp_path / "job.yaml", "in", "out", input={"path": "in", "pictures": [folder]})

    with pytest.raises(SpecError, match=r"input\.pictures") as caught:
        load_spec(path)

    assert says in str(caught.value)

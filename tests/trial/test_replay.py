"""Facts about `darkroom replay`: it generates one row again and tells how it differs from the output."""

import io
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from rich.console import Console

from actors.storage.output import open_output
from jobs.output.job_record import claim, require_record
from jobs.planning.plan import make_plan
from jobs.survey.survey import make_survey
from jobs.trial import replay
from jobs.trial.replay import find_row, replay_row
from jobs.verification.row_comparison import environment_differences, image_difference
from schemas.errors import DarkroomError, RefusedError, SpecError
from schemas.output_layout import MODELS_KEY, VERSIONS_KEY
from schemas.spec.job_spec import JobSpec
from tests.support.in_process import Record, drawn_image, job_spec, make, write_rows

ROUTES: Record = {
    "text2img": {"model": "sd", "num_inference_steps": 2},
    "img2img": {"model": "sd", "num_inference_steps": 3},
    "chain": {"task": "text2img", "model": "sd", "num_inference_steps": 1, "then": ["img2img"]}
    | {"keep_steps": True},
}
ROWS: list[Record] = [
    {"row_id": "a", "prompt": "a cat", "note": 1},
    {"row_id": "b", "prompt": "a dog", "num_images_per_prompt": 2, "note": 2},
    {"row_id": "c", "prompt": "x", "task": "img2img", "image": drawn_image(), "note": 3},
    {"row_id": "d", "prompt": "x", "task": "chain", "note": 4},
    {"row_id": "bad", "prompt": "x", "height": 63, "note": 5},
]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """An engine sets the number of torch's threads, which later tests of this process do not expect."""
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)


def made(folder: Path, rows: list[Record] = ROWS, **changes: Any) -> JobSpec:
    """The spec of a job that has run in this process, with its record."""
    path = write_rows(folder / "rows.parquet", rows)
    sections = {"input": {"path": str(path), "keep": ["note"]}, "routes": ROUTES, **changes}
    spec = job_spec(path, folder / "out", **sections)
    plan, findings = make_plan(make_survey(spec))
    claim(open_output(spec.output.path), plan, findings)
    make(spec)
    return spec


def replayed(spec: JobSpec, row_id: str, **options: Any) -> str:
    """What the command prints."""
    file = io.StringIO()
    replay_row(spec.output.path, row_id, Console(file=file, width=300), **options)
    return file.getvalue()


def refused(spec: JobSpec, row_id: str) -> str:
    """What the command prints of a row that is not equal."""
    file = io.StringIO()
    with pytest.raises(DarkroomError, match=f"row {row_id} is not what .* has of it"):
        replay_row(spec.output.path, row_id, Console(file=file, width=300))
    return file.getvalue()


def change_part(spec: JobSpec, **values: Any) -> None:
    """Write other values into the first row of the only part."""
    (path,) = Path(spec.output.path, "data").iterdir()
    table = pq.read_table(path)
    for name, value in values.items():
        index = table.schema.get_field_index(name)
        column = pa.array([value, *table[name].to_pylist()[1:]], table.schema.field(name).type)
        table = table.set_column(index, table.schema.field(name), column)
    pq.write_table(table, path)


@pytest.mark.parametrize("images", ["parquet", "files"])
@pytest.mark.parametrize("exact", [True, False])
def test_every_row_is_equal_where_nothing_has_changed(tmp_path: Path, exact: bool, images: str) -> None:
    """Alone if the job is exact, and with the rows of its shard otherwise. The output stays as it is."""
    output = {"path": str(tmp_path / "out"), "images": images}
    spec = made(tmp_path, batching={"exact": exact}, output=output)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}

    said = {row_id: replayed(spec, row_id) for row_id in ("a", "b", "c", "d", "bad")}

    company = "alone" if exact else "with the 5 rows of its shard"
    assert all(f"generating it again {company}" in text for text in said.values())
    assert {row_id: text.splitlines()[-1] for row_id, text in said.items()} == {
        "a": "equal: 1 image, byte for byte",
        "b": "equal: 2 images, byte for byte",
        "c": "equal: 1 image, byte for byte",
        "d": "equal: 1 image, byte for byte",
        "bad": "equal: the row is failed again",
    }
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}


@pytest.mark.parametrize("rows_per_group", [1, 2, 4])
def test_a_row_is_found_in_any_row_group(tmp_path: Path, rows_per_group: int) -> None:
    """Also one whose images lie in two of them; a part may have many, and no other ones are read."""
    spec = made(tmp_path)
    (path,) = Path(spec.output.path, "data").iterdir()
    table = pq.read_table(path)
    pq.write_table(table, path, row_group_size=rows_per_group)
    output = open_output(spec.output.path)
    record = require_record(output)

    for row_id in ("a", "b", "c", "d", "bad"):
        expected = [each for each in table.to_pylist() if each["row_id"] == row_id]
        assert find_row(output, record, row_id).records == expected


def test_a_row_can_be_generated_alone(tmp_path: Path) -> None:
    """It is the quick way: of the rows of its shard none is generated."""
    spec = made(tmp_path, ROWS[:1])

    assert "generating it again alone" in replayed(spec, "a", alone=True)
    change_part(spec, guidance_scale=5.5)
    with pytest.raises(DarkroomError, match="so leave out --alone"):
        replayed(spec, "a", alone=True)


def test_a_changed_value_and_image_are_told(tmp_path: Path) -> None:
    """Each with what it was and is now; an image by its pixels."""
    spec = made(tmp_path, ROWS[:1], batching={"exact": True})
    (path,) = Path(spec.output.path, "data").iterdir()
    row = pq.read_table(path).to_pylist()[0]
    pixels = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))).copy()
    pixels[3, 4, 1] ^= 5
    change_part(spec, guidance_scale=5.5, image={"bytes": png(pixels), "path": "x"})

    said = refused(spec, "a")

    assert "`guidance_scale` was 5.5, is now 7.5" in said
    assert "`image` differs in 1 of 4,096 pixels, by up to " in said


def test_a_changed_checkpoint_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its revision: for a folder, a digest of its files."""
    spec = made(tmp_path, ROWS[:1], batching={"exact": True})
    card = replay.read_card("sd", spec.models["sd"])
    monkeypatch.setattr(replay, "read_card", lambda name, model: replace(card, revision="other"))

    assert f"the checkpoint of model `sd` was {card.revision}, is now other" in replayed(spec, "a")


def test_a_changed_version_is_named() -> None:
    """And a library that an older darkroom did not record."""
    stored = {VERSIONS_KEY: b'{"torch": "1.0"}', MODELS_KEY: b"{}"}
    present = {VERSIONS_KEY: json.dumps({"torch": "2.0", "pillow": "9"})}

    assert [*environment_differences(stored, present, {})] == [
        "torch was 1.0, is now 2.0",
        "pillow was not recorded, is now 9",
    ]


def png(pixels: np.ndarray[Any, Any], level: int = 6) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=level)
    return file.getvalue()


def test_an_image_differs_by_its_pixels() -> None:
    """In 8 and 16 bits, in size, or only in the bytes of its file."""
    grey, deep = np.zeros((4, 6, 3), np.uint8), np.full((4, 6), 60_000, np.uint16)
    other, shallow = grey.copy(), deep.copy()
    other[1, 2], shallow[0, 0] = 7, 0

    assert image_difference(png(grey), png(other)) == "differs in 1 of 24 pixels, by up to 7 of 255 levels"
    assert image_difference(png(deep), png(shallow)).endswith("by up to 60,000 of 65,535 levels")
    assert image_difference(png(grey), png(grey[:2])) == "had the size 6x4, and has 6x2 now"
    assert image_difference(png(grey, 0), png(grey, 9)).startswith(
        "has the same pixels in a file of other bytes"
    )
    assert image_difference(None, png(grey)) == "was not there, and is now"


def test_a_row_that_no_part_has_is_refused(tmp_path: Path) -> None:
    spec = made(tmp_path, ROWS[:1])

    with pytest.raises(SpecError, match=r"has no row nobody$"):
        replayed(spec, "nobody")
    next(Path(spec.output.path, "data").iterdir()).unlink()
    with pytest.raises(SpecError, match="has no row a; 1 part of 1 are still missing"):
        replayed(spec, "a")


def test_a_row_that_takes_its_worker_down_is_not_generated(tmp_path: Path) -> None:
    """Neither alone nor as company of another row."""
    spec = made(tmp_path, ROWS[:3])
    change_part(spec, status="failed", error_code="worker_crash", image=None, image_sha256=None)
    file = io.StringIO()

    with suppress(DarkroomError):  # The row was made in other company here, which can change its last bits.
        replay_row(spec.output.path, "b", Console(file=file, width=300))

    assert "generating it again with the 2 rows of its shard" in file.getvalue()
    with pytest.raises(RefusedError, match="it takes its worker down"):
        replayed(spec, "a")


def test_a_changed_input_is_refused(tmp_path: Path) -> None:
    spec = made(tmp_path, ROWS[:1])
    write_rows(tmp_path / "rows.parquet", [{"row_id": "a", "prompt": "a bird", "note": 1}])

    with pytest.raises(RefusedError, match=r"rows\.parquet changed after this job was planned"):
        replayed(spec, "a")

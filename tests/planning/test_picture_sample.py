"""Facts about images that rows name by URI: which are refused by their text, and which are looked at."""

import base64
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from jobs.planning.picture_sample import SAMPLE_SIZE, LookedAt, Picture
from jobs.planning.plan import make_plan
from jobs.planning.plan_text import check_rows, refuse_hopeless
from jobs.planning.row_scan import Findings
from jobs.survey.survey import make_survey
from schemas.columns.output_columns import IMAGE_TYPE
from schemas.errors import RowError, SpecError
from schemas.spec.job_spec import JobSpec
from tests.support.engines import GreyEngine
from tests.support.in_process import drawn_image, job_spec, make, outcomes

PNG = drawn_image()["bytes"]


def spec_of(folder: Path, images: Any, task: str = "img2img", **changes: Any) -> JobSpec:
    """A job whose rows have these images, and of which all rows may fail."""
    images = images if isinstance(images, pa.Array) else pa.array(images)
    (folder / "in").mkdir(exist_ok=True)
    columns = {"prompt": ["p"] * len(images), "image": images, "task": [task] * len(images)}
    pq.write_table(pa.table(columns), folder / "in" / "rows.parquet")
    return job_spec(folder / "in", folder / "out", **{"errors": {"max_rate": 1.0}} | changes)


def findings(spec: JobSpec) -> Findings:
    return make_plan(make_survey(spec))[1]


def structs(*images: tuple[bytes | None, str | None]) -> pa.Array:
    return pa.array([{"bytes": data, "path": path} for data, path in images], IMAGE_TYPE)


def test_the_plan_counts_the_rows_whose_uri_may_not_be_read(tmp_path: Path) -> None:
    """By kind, each with the way out. No row of them needs a look."""
    (tmp_path / "in" / "here").mkdir(parents=True)
    (tmp_path / "in" / "here" / "a.png").write_bytes(PNG)
    as_text = base64.b64encode(PNG).decode()
    uris = {
        "here/a.png": None,
        f"{tmp_path}/in/here/a.png": None,
        f"{tmp_path}/elsewhere/a.png": "disallowed_uri",
        "../a.png": "disallowed_uri",
        "here/../../a.png": "disallowed_uri",
        "here/..": "disallowed_uri",
        "": "disallowed_uri",
        "s3://bucket/a.png": "disallowed_uri",
        "gs://bucket/a.png": "disallowed_uri",
        "https://example.com/a.png?token=x": "image_url",
        "HTTP://example.com/a.png": "image_url",
        as_text: "image_as_text",
        as_text + "A" * 100_000: "image_as_text",
        f"data:image/png;base64,{as_text}": "image_as_text",
        "A" * 5_000: "text_too_long",
    }

    found = findings(spec_of(tmp_path, list(uris)))

    codes = [code for code in uris.values() if code]
    assert found.num_bad == {code: codes.count(code) for code in sorted({*codes})}
    assert found.looked_at == LookedAt(num_pictures=2, num_looked=2)
    messages = {bad.problem.code: bad.problem.message for bad in found.bad_rows}
    assert "download the images" in messages["image_url"]
    assert "decode it into a column of bytes" in messages["image_as_text"]
    assert as_text[:50] not in str(found.bad_rows)
    assert "token=x" not in str(found.bad_rows)


def test_uris_beside_images_in_the_file_are_not_read(tmp_path: Path) -> None:
    """A path beside bytes is the name that the image once had. Where all bytes are null, it is a URI."""
    inside = structs((PNG, "https://example.com/a.png"), (PNG, None))
    outside = structs((None, "https://example.com/a.png"), (None, "gone.png"))
    mixed = structs((PNG, "https://example.com/a.png"), (None, "https://example.com/a.png"))

    assert not findings(spec_of(tmp_path, inside)).num_bad
    assert outcomes(make(spec_of(tmp_path, inside), GreyEngine())) == ["ok", "ok"]
    assert findings(spec_of(tmp_path, outside)).num_bad == {"image_url": 1}
    assert not findings(spec_of(tmp_path, mixed)).num_bad


def test_only_images_that_a_row_needs_are_judged(tmp_path: Path) -> None:
    """A row of text2img may have any text in the column, also if rows of another route read it."""
    found = findings(spec_of(tmp_path, ["https://example.com/a.png", "gone.png"], "text2img"))

    assert not found.num_bad
    assert found.looked_at.num_pictures == 0


def test_a_sample_of_the_images_is_looked_at(tmp_path: Path) -> None:
    """Each is opened: it may be missing, or no image. The same rows give the same sample."""
    spec = spec_of(tmp_path, [f"{number}.png" for number in range(300)])
    for number in range(300):
        (tmp_path / "in" / f"{number}.png").write_bytes(PNG if number % 3 else b"no image")
    (tmp_path / "in" / "1.png").unlink()

    found = findings(spec).looked_at

    assert (found.num_pictures, found.num_looked) == (300, SAMPLE_SIZE)
    assert 5 < len(found.unreadable) < 40
    assert all(picture.uri == f"{picture.row}.png" for picture, _ in found.unreadable)
    assert {error.code for _, error in found.unreadable} <= {"invalid_image", "unreadable_uri"}
    assert str(findings(spec).looked_at) == str(found)


@pytest.mark.parametrize(("num_missing", "refused"), [(0, False), (1, False), (40, True)])
def test_a_job_that_must_fail_by_its_images_is_refused(
    tmp_path: Path, num_missing: int, refused: bool
) -> None:
    """Of 100 images that all could be looked at, more than errors.max_rate. The look is told in any case."""
    spec = spec_of(tmp_path, [f"{number}.png" for number in range(60)], errors={"max_rate": 0.05})
    for number in range(num_missing, 60):
        (tmp_path / "in" / f"{number}.png").write_bytes(PNG)
    surveyed, printed = make_survey(spec), StringIO()

    _, found = check_rows(surveyed, Console(file=printed, width=300))

    result = f"{num_missing} cannot be read, such as:" if num_missing else "all can be read"
    assert f"looked at 60 of 60 images that rows name by URI: {result}" in printed.getvalue()
    if refused:
        says = r"(?s)more rows will fail .* row 0: unreadable_uri: 0\.png does not"
        with pytest.raises(SpecError, match=says):
            refuse_hopeless(surveyed, found)
    else:
        refuse_hopeless(surveyed, found)


@pytest.mark.parametrize(
    ("num_bad", "num_looked", "num_all", "least", "most"),
    [
        (0, 64, 10**6, 0, 0),
        (1, 64, 10**6, 1_000, 5_000),
        (3, 64, 10**6, 14_000, 20_000),
        (64, 64, 10**6, 900_000, 990_000),
        (64, 64, 64, 64, 64),
        (2, 50, 50, 2, 2),
        (1, 1, 1, 1, 1),
    ],
)
def test_an_estimate_from_a_sample_is_low(
    num_bad: int, num_looked: int, num_all: int, least: float, most: float
) -> None:
    """So that one missing image of a few does not refuse a job of millions. A whole look is exact."""
    bad = (Picture(0, "f", 0, "image", "u"), RowError("unreadable_uri", "gone"))
    looked_at = LookedAt(num_pictures=num_all, num_looked=num_looked, unreadable=(bad,) * num_bad)

    assert least <= round(looked_at.least_unreadable, 6) <= most


def test_a_later_folder_of_pictures_changes_no_job(tmp_path: Path) -> None:
    """So the rows that could not be read can be generated by a retry."""
    spec = spec_of(tmp_path, [f"{tmp_path}/other/a.png"])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.png").write_bytes(PNG)
    section = {"path": str(tmp_path / "in"), "pictures": [str(tmp_path / "other")]}
    grown = spec_of(tmp_path, [f"{tmp_path}/other/a.png"], input=section)

    assert findings(spec).num_bad == {"disallowed_uri": 1}
    assert not findings(grown).num_bad
    assert make_survey(spec).job.fingerprint == make_survey(grown).job.fingerprint

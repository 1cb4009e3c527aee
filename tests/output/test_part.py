"""A part as a file: its rows, row groups, footer and images, and the rows that a retry leaves alone."""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.parts.commit import PartIdentity
from actors.parts.image_writer import ImageWriter
from actors.parts.part import ROW_GROUP_BYTES, FinishedImage, Part, RowOutcome, StoredImage, build_part
from actors.parts.unchanged_rows import unchanged_records
from actors.rows.routing import ResolvedRoute
from actors.rows.row import Row
from actors.storage.output import open_output
from jobs.output.part_footers import PartFooter, read_footers
from jobs.output.parts import PartFile
from schemas.columns.output_columns import IMAGE_TYPE
from schemas.errors import RefusedError, RowError
from schemas.job import Shard
from schemas.output_layout import shard_name
from schemas.spec.job_spec import OutputSpec
from schemas.systems.system_table import SYSTEMS

IDENTITY = PartIdentity(job="job", shard="shard")
MOMENT = pa.timestamp("ns")
SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("image_index", pa.int64()),
        ("task", pa.string()),
        ("model", pa.string()),
        ("image", IMAGE_TYPE),
        ("depth", IMAGE_TYPE),
        ("step_images", pa.list_(IMAGE_TYPE)),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("prompt", pa.string()),
        ("seed", pa.int64()),
        ("nsfw", pa.bool_()),
        ("status", pa.string()),
        ("error_code", pa.string()),
        ("error_message", pa.string()),
        ("image_sha256", pa.string()),
        ("depth_sha256", pa.string()),
        ("note", pa.binary()),
        ("moment", MOMENT),
    ]
)
"""The columns of a part, with two that were kept."""
KEPT = ("note", "moment")
QUARTER = StoredImage(data=bytes(ROW_GROUP_BYTES // 4), path="quarter.png")
"""An image, as the part sees it, of which four fill a row group."""


def row(index: int, *, num_images: int = 1, note: bytes = b"") -> Row:
    # A moment that no datetime of Python can hold: its last digit is a nanosecond.
    moment = pa.array([10**18 + index], pa.int64()).cast(MOMENT)
    return Row(
        index=index,
        row_id=f"r{index}",
        route=ResolvedRoute(name="text2img", model="sd", system=SYSTEMS[0], defaults={}),
        texts={"prompt": f"prompt {index}"},
        images={},
        seed=100 * index,
        num_images=num_images,
        parameters={"width": 64, "height": 32},
        keep={"note": pa.array([note]), "moment": moment},
        problem=None,
    )


def image(index: int = 0, data: bytes = b"", **changes: Any) -> FinishedImage:
    stored = StoredImage(data=data or f"image {index}".encode(), path=f"{index}.png")
    plain = FinishedImage(image_index=index, image=stored, width=64, height=32, nsfw=False)
    return replace(plain, **changes)


def ok(row: Row) -> RowOutcome:
    """With all its images, each of which tells whose it is."""
    return RowOutcome(row, [image(i, f"{row.row_id}-{i}".encode()) for i in range(row.num_images)])


def failed(row: Row, code: str = "out_of_memory") -> RowOutcome:
    return RowOutcome(row, problem=RowError(code, "it did not fit"))


def built(outcomes: Sequence[RowOutcome], **options: Any) -> Part:
    return build_part(outcomes, SCHEMA, IDENTITY, embed_images=True, footer={}, **options)


def table_of(part: bytes) -> pa.Table:
    return pq.read_table(io.BytesIO(part))


def changed(part: bytes, name: str, values: Sequence[Any], **options: Any) -> bytes:
    """The part with other values in a column."""
    table = table_of(part)
    position = table.schema.get_field_index(name)
    file = io.BytesIO()
    column = pa.array(values, table.schema.field(name).type)
    pq.write_table(table.set_column(position, table.schema.field(name), column), file, **options)
    return file.getvalue()


def test_the_images_of_a_row_are_in_order_whichever_was_encoded_first() -> None:
    """Equal shards give equal bytes, whatever the threads do; each image keeps its own seed."""
    outcomes = [RowOutcome(row(i, num_images=3), [image(j) for j in range(3)]) for i in range(1, 3)]
    backwards = [RowOutcome(outcome.row, outcome.images[::-1]) for outcome in outcomes]
    turned = [RowOutcome(outcome.row, [*outcome.images[1:], outcome.images[0]]) for outcome in outcomes]

    part = built(outcomes)

    assert built(backwards).data == built(turned).data == part.data
    rows = table_of(part.data).to_pylist()
    assert [(record["image_index"], record["seed"]) for record in rows] == [
        *((0, 100), (1, 101), (2, 102)),
        *((0, 200), (1, 201), (2, 202)),
    ]
    assert [record["image"]["bytes"].decode() for record in rows] == ["image 0", "image 1", "image 2"] * 2


def test_a_row_is_filtered_if_one_of_its_images_is(tmp_path: Path) -> None:
    """Whichever it is; the row is counted once, and its other images are images."""
    flagged = {"image": None, "width": None, "height": None, "nsfw": True}
    outcomes = [
        RowOutcome(row(0, num_images=2), [image(0), image(1, **flagged)]),
        RowOutcome(row(1, num_images=2), [image(0, **flagged), image(1)]),
        ok(row(2, num_images=2)),
    ]

    part = built(outcomes)

    assert part.made == {"ok": 1, "filtered": 2, "failed": 0, "images": 4}
    footer = pq.read_schema(io.BytesIO(part.data)).metadata[b"darkroom.counts"]
    assert json.loads(footer) == part.made


def test_a_row_that_fails_has_no_image_and_no_size() -> None:
    """Also where some of its images were made before: it has one record, and counts once."""
    problem = RowError("generation_error", "the third image failed")
    outcome = RowOutcome(row(3, num_images=3), [image(0), image(1)], problem=problem)

    part = built([ok(row(2)), outcome])

    made, record = table_of(part.data).to_pylist()
    assert (made["width"], made["height"]) == (64, 32)
    assert (record["status"], record["error_code"]) == ("failed", "generation_error")
    assert (record["image"], record["image_sha256"], record["width"], record["height"]) == (None,) * 4
    assert (record["image_index"], record["seed"]) == (0, 300)
    assert part.made == {"ok": 1, "filtered": 0, "failed": 1, "images": 1}
    assert part.error_codes == {"generation_error": 1}


def test_a_full_row_group_is_ended_whatever_fills_it() -> None:
    """Viewers read a whole group to show a page of it; the next group is as large again."""
    outcomes = [
        RowOutcome(row(0), [image(image=QUARTER)]),
        RowOutcome(row(1), [image(depth=QUARTER)]),
        RowOutcome(row(2), [image(steps=(image().image, QUARTER))]),
        RowOutcome(row(3, note=QUARTER.data), [image()]),
        *(ok(row(i)) for i in range(4, 7)),
    ]

    part = built(outcomes)

    metadata = pq.read_metadata(io.BytesIO(part.data))
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [4, 3]


def in_groups_of_two(part: bytes, **options: Any) -> bytes:
    return changed(part, "task", table_of(part)["task"].to_pylist(), row_group_size=2, **options)


def footer_of(folder: Path, data: bytes) -> PartFooter:
    output = open_output(str(folder))
    output.replace("part", data)
    part = PartFile(index=0, uri=output.uri("part"), size_bytes=len(data))
    (footer,) = read_footers(output, [part])
    return footer


def test_a_footer_tells_which_row_groups_may_have_images_and_failures(tmp_path: Path) -> None:
    """Reports read no other ones; where it has no statistics, any group may have both."""
    withheld = image(image=None, nsfw=True)
    outcomes = [
        *(failed(row(0)), failed(row(1), "mask_size")),
        *(failed(row(2)), RowOutcome(row(3), [withheld])),
        *(RowOutcome(row(4), [withheld]), RowOutcome(row(5), [withheld])),
        *(failed(row(6)), ok(row(7))),
        *(ok(row(8)), ok(row(9))),
        ok(row(10)),
    ]
    part = built(outcomes).data

    footer = footer_of(tmp_path, in_groups_of_two(part))
    unknown = footer_of(tmp_path, in_groups_of_two(part, write_statistics=False))

    assert [(group.first_row, group.num_rows) for group in footer.groups] == [
        *((0, 2), (2, 2), (4, 2), (6, 2), (8, 2), (10, 1))
    ]
    assert [group.has_failures for group in footer.groups] == [True, True, False, True, False, False]
    assert [group.has_images for group in footer.groups] == [False, True, True, True, True, True]
    assert {(group.has_failures, group.has_images) for group in unknown.groups} == {(True, True)}
    assert footer.error_codes == {"out_of_memory": 3, "mask_size": 1}


def test_a_footer_tells_what_a_row_group_weighs_and_which_columns_are_lines_of_text(tmp_path: Path) -> None:
    """Depth maps weigh as images do; bytes, lists and structs are not shown as text."""
    depth = StoredImage(data=np.random.default_rng(0).bytes(5_000), path="depth.png")
    outcomes = [ok(row(0)), ok(row(1)), RowOutcome(row(2), [image(depth=depth)])]

    flat, deep = footer_of(tmp_path, in_groups_of_two(built(outcomes).data)).groups

    assert 0 < flat.image_bytes < 5_000 < deep.image_bytes
    assert flat.image_columns == deep.image_columns == ("image", "depth", "step_images")
    assert {*SCHEMA.names} - {*deep.columns} == {"image", "depth", "step_images", "note"}


def shard(index: int, **changes: Any) -> Shard:
    plain = Shard(
        index=index, name=shard_name(index, 5), uri="/in.parquet", etag="", model="sd", start=0, stop=9
    )
    return replace(plain, **changes)


def writer(folder: Path, index: int = 3, **options: str) -> ImageWriter:
    return ImageWriter(shard(index), OutputSpec(path=str(folder), **options), open_output(str(folder)))


def grey(level: int) -> Any:
    return np.full((8, 16, 3), level, np.uint8)


def test_no_two_images_of_an_output_have_one_name(tmp_path: Path) -> None:
    """Whoever unpacks a data set into a folder keeps them all."""
    stored = [
        writer(tmp_path, index, format="webp").write(name, "r", grey(1))
        for index in (3, 4)
        for name in ("000007-0", "000007-1")
    ]

    assert [image.path for image in stored] == [
        f"train-0000{index}-of-00005-000007-{number}.webp" for index in (3, 4) for number in (0, 1)
    ]
    assert not [*tmp_path.iterdir()]


def test_an_image_of_its_own_is_named_after_its_content(tmp_path: Path) -> None:
    """Two attempts at a shard may differ: each part names the objects of its own attempt."""
    first, second, again = (
        writer(tmp_path, images="files").write("000007-0", "r", grey(level)) for level in (1, 2, 1)
    )

    assert first.path != second.path
    assert first.path == again.path
    for image in (first, second):
        path = tmp_path / image.path
        assert path.read_bytes() == image.data
        assert path.parent == tmp_path / "images" / "train-00003-of-00005"
        assert path.name == f"000007-0-r-{hashlib.sha256(image.data).hexdigest()[:16]}.png"


@pytest.mark.parametrize(
    ("row_id", "readable"),
    [
        ("harbour-0042_b.1", "-harbour-0042_b.1"),
        (-7, "-7"),
        ("../../etc/passwd", "-etc_passwd"),
        ("a/b\\c:d*e?f%2Fg\0h\n", "-a_b_c_d_e_f_2Fg_h"),
        ("rows/1.parquet#17", "-rows_1.parquet_17"),
        ("..", ""),
        ("絵\ud800", ""),
        ("ß é", ""),
        ("", ""),
        ("first" + "x" * 10_000 + "last", f"-first{'x' * 27}_{'x' * 27}last"),
    ],
)
def test_the_name_of_an_image_has_the_rows_id_whatever_it_is(
    tmp_path: Path, row_id: str | int, readable: str
) -> None:
    """In ASCII that every file system takes. Its row's number and its content tell it from others."""
    stored = writer(tmp_path, images="files").write("000007-0", row_id, grey(1))

    content_hash = hashlib.sha256(stored.data).hexdigest()[:16]
    assert stored.path == f"images/train-00003-of-00005/000007-0{readable}-{content_hash}.png"
    assert (tmp_path / stored.path).read_bytes() == stored.data
    assert len(Path(stored.path).name) < 128


def test_ids_that_look_alike_have_images_of_their_own(tmp_path: Path) -> None:
    """Also on a file system that takes `A` and `a` for one, and if the images are equal."""
    ids = ["a", "A", "a/", "a?", "é", "e", "絵", "画"]

    stored = [
        writer(tmp_path, images="files").write(f"{i:06d}-0", row_id, grey(1)) for i, row_id in enumerate(ids)
    ]

    assert len({image.path.lower() for image in stored}) == len(ids)


@pytest.mark.parametrize("image_format", ["jpeg", "webp"])
def test_a_depth_map_is_a_png_whatever_the_images_are(tmp_path: Path, image_format: str) -> None:
    """No other format has sixteen bits."""
    depth = np.arange(128, dtype=np.uint16).reshape(8, 16) * 500

    stored = writer(tmp_path, format=image_format).write_depth("000007-0-depth", "r", depth)

    assert stored.data.startswith(b"\x89PNG")
    assert stored.path.endswith(".png")


ROWS = [row(0), row(1, num_images=2), row(2, num_images=2), row(3), row(4)]
OUTCOMES = [
    *(ok(ROWS[0]), ok(ROWS[1])),
    *(failed(ROWS[2]), failed(ROWS[3], "unreadable_uri"), failed(ROWS[4], "missing_prompt")),
]


@pytest.mark.parametrize(
    ("retried_codes", "unchanged"),
    [((), [0, 1]), (("out_of_memory",), [0, 1, 3, 4]), (("out_of_memory", "missing_prompt"), [0, 1, 3])],
)
def test_a_retry_leaves_every_other_row_as_it_is(retried_codes: Sequence[str], unchanged: list[int]) -> None:
    """All its records with all their columns, to the nanosecond, however the part is cut into row groups.

    What the attempt has made is told without them.
    """
    part = built(OUTCOMES)
    many_groups = changed(part.data, "row_id", table_of(part.data)["row_id"].to_pylist(), row_group_size=1)

    for data in (part.data, many_groups):
        records = unchanged_records(io.BytesIO(data), ROWS, retried_codes, KEPT)
        again = built([ok(each) for each in ROWS], unchanged=records)

        assert [*records] == unchanged
        expected = [outcome if i in unchanged else ok(ROWS[i]) for i, outcome in enumerate(OUTCOMES)]
        assert (again.data, again.error_codes) == (built(expected).data, built(expected).error_codes)
        assert again.made == built([ok(each) for i, each in enumerate(ROWS) if i not in unchanged]).made


@pytest.mark.parametrize(
    "row_ids",
    [
        ["r0", "r1", "r0", "r2", "r3", "r4"],
        ["r0", "r0", "r1", "r2", "r3", "r4"],
        ["r0", "r1", "r1", "r2", "r4", "r3"],
    ],
)
def test_a_part_whose_rows_are_not_the_shards_is_refused(row_ids: list[str]) -> None:
    """Not even a second image may be another row's."""
    part = changed(built(OUTCOMES).data, "row_id", row_ids)

    with pytest.raises(RefusedError, match=r"the part does not have row 'r[13]' where its shard has it"):
        unchanged_records(io.BytesIO(part), ROWS, (), KEPT)


def test_a_part_of_fewer_rows_than_its_shard_is_refused() -> None:
    """And one of more rows."""
    part = built(OUTCOMES)

    with pytest.raises(RefusedError, match="the part does not have row 'r4'"):
        unchanged_records(io.BytesIO(built(OUTCOMES[:4]).data), ROWS, (), KEPT)
    with pytest.raises(RefusedError, match="the part has 1 more row than its shard"):
        unchanged_records(io.BytesIO(part.data), ROWS[:4], (), KEPT)


def test_a_retry_does_not_copy_a_damaged_image() -> None:
    """A flipped bit would have a new checksum and be hidden for good."""
    part = bytearray(built(OUTCOMES).data)
    part[part.index(b"r1-0")] ^= 1

    with pytest.raises(OSError, match="CRC"):
        unchanged_records(io.BytesIO(part), ROWS, (), KEPT)

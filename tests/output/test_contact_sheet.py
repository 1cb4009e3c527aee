"""The contact sheet: what stands on it, that prompts stay text, and how little of an output is read."""

import base64
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from actors.images.encoding import encode
from actors.parts.commit import PartIdentity
from actors.parts.part import FinishedImage, RowOutcome, StoredImage, build_part
from actors.rows.routing import ResolvedRoute
from actors.rows.row import Row
from actors.storage.local_disk import LocalStorage
from actors.storage.objects import Storage, Tail
from actors.storage.output import Output
from actors.storage.stores import open_storage
from actors.storage.uris import join
from jobs.output.job_record import StoredRecord, to_json
from jobs.output.parts import list_parts
from jobs.reports.manifest import write_manifest
from jobs.reports.sheet.contact_sheet import Sheet, make_sheet, render, write_report
from jobs.reports.sheet.even_choice import share, spread
from jobs.reports.sheet.frames import (
    MAX_FAILED_PARTS,
    MAX_FAILURES,
    MAX_FOOTERS,
    MAX_GROUPS,
    MAX_ROWS_PER_GROUP,
)
from jobs.reports.sheet.thumbnails import CRISP_SIDE, LARGE
from schemas.columns.output_columns import CONTROLS_TYPE, IMAGE_TYPE, WEIGHTS_TYPE
from schemas.errors import RefusedError, RowError, SpecError
from schemas.job import PlannedFile, fingerprint_of
from schemas.output_layout import JOB_RECORD, SUCCESS, SUMMARY, ShardNames
from schemas.systems.control_parameters import CONTROL
from schemas.systems.model_card import AdapterFile, ControlNetCard
from schemas.systems.system_table import SYSTEMS
from tests.support.checkpoints import model_card
from tests.support.in_process import job_spec

HOSTILE = (
    '</script><img src=x onerror="alert(1)"><!-- <script>alert(1)</script> {{sheet}} {{title}} &lt; \u2028'
)
IDENTITY: dict[str, Any] = {"columns": {}}
FINGERPRINT = fingerprint_of(IDENTITY)
CARD = model_card(checkpoint="somebody/stable-diffusion")

LAST_RUN = {"rows": 4, "images": 3, "seconds": 9.0, "working_seconds": 6.0, "images_per_second": 0.5}

FAMILIES = {"x4": "upscale"}
"""The family of each model that is not a Stable Diffusion 1."""
NUM_FRAMES = 110
"""Rows of a part: three row groups of 33 rows, which are read 16 at a time, and one of eleven."""

SCHEMA = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("image_index", pa.int64(), nullable=False),
        ("task", pa.string()),
        ("model", pa.string()),
        ("image", IMAGE_TYPE),
        ("depth", IMAGE_TYPE),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("prompt", pa.string()),
        ("negative_prompt", pa.string()),
        ("seed", pa.int64()),
        ("num_inference_steps", pa.int64()),
        ("guidance_scale", pa.float64()),
        ("loras", WEIGHTS_TYPE),
        ("controls", CONTROLS_TYPE),
        ("nsfw", pa.bool_()),
        pa.field("status", pa.string(), nullable=False),
        ("error_code", pa.string()),
        ("error_message", pa.string()),
        ("image_sha256", pa.string()),
        ("depth_sha256", pa.string()),
        ("step_images", pa.list_(IMAGE_TYPE)),
        ("category", pa.string()),
        ("reference", IMAGE_TYPE),
    ]
)
"""The columns of a part, with two that were kept: a text and an image."""


class CountingFile(io.FileIO):
    """A file that knows how much of it was read."""

    bytes_read = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(-1 if size is None else size)
        self.bytes_read += len(data)
        return data


@dataclass
class CountingStorage:
    """Local disk that counts what is opened and read."""

    local: Storage
    files: list[tuple[str, CountingFile]] = field(default_factory=list)

    def open(self, uri: str) -> BinaryIO:
        file = CountingFile(uri)
        self.files.append((uri, file))
        return file  # type: ignore[return-value]

    def read_tail(self, uri: str, num_bytes: int) -> Tail:
        with self.open(uri) as file:
            size_bytes = file.seek(0, os.SEEK_END)
            file.seek(max(0, size_bytes - num_bytes))
            return Tail(data=file.read(num_bytes), size_bytes=size_bytes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.local, name)

    @property
    def num_opened(self) -> Counter[str]:
        """How often, by the URI of the part."""
        return Counter(uri for uri, _ in self.files if uri.endswith(".parquet"))

    @property
    def bytes_read(self) -> int:
        return sum(file.bytes_read for _, file in self.files)


class Markup(HTMLParser):
    """A page as a browser splits it: its tags, each with its attributes and the text up to the next one."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = [("", {})]
        self.texts: list[str] = [""]
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.elements.append((f"/{tag}", {}))
        self.texts.append("")

    def handle_data(self, data: str) -> None:
        self.texts[-1] += data

    @property
    def tags(self) -> list[str]:
        return [tag for tag, _ in self.elements]

    def text(self, wanted: str, **attributes: str) -> str:
        """Of the first element of this kind with just these attributes."""
        return self.texts[self.elements.index((wanted, attributes))]

    def text_of(self, element_id: str) -> str:
        """The text of the element with this id, up to the next tag."""
        return next(
            text
            for (_, attributes), text in zip(self.elements, self.texts, strict=True)
            if attributes.get("id") == element_id
        )

    @property
    def all_text(self) -> str:
        """The page's text outside of scripts and styles."""
        texts = zip(self.tags, self.texts, strict=True)
        return "".join(text for tag, text in texts if tag not in ("script", "style"))

    def island(self) -> dict[str, Any]:
        """The sheet inside the page."""
        return dict(json.loads(self.text("script", id="sheet", type="application/json")))

    def policy(self) -> dict[str, list[str]]:
        """The Content-Security-Policy by its rules."""
        content = next(attributes["content"] for _, attributes in self.elements if "http-equiv" in attributes)
        rules = [rule.split() for rule in (content or "").split(";")]
        return {rule[0]: rule[1:] for rule in rules}


@dataclass
class ReportedOutput:
    """An output folder in the making."""

    root: str
    storage: Storage
    num_shards: int = 1

    def name(self, index: int) -> str:
        return f"train-{index:05d}-of-{self.num_shards:05d}"

    def write_job(
        self, *, rows_per_shard: int = 1, routes: dict[str, Any] | None = None, **checkpoints: str
    ) -> None:
        models = checkpoints or {"sd": CARD.checkpoint}
        num_rows = self.num_shards * rows_per_shard
        spec = job_spec(
            Path("/in"),
            Path(self.root),
            name="sheet-test",
            models={name: {"checkpoint": place} for name, place in models.items()},
            batching={"shard_rows": rows_per_shard},
            **({"routes": routes} if routes else {}),
        )
        file = PlannedFile(
            uri="/in", size_bytes=1, etag="", num_rows=num_rows, rows_by_model={next(iter(models)): num_rows}
        )
        record = StoredRecord(
            name=spec.name,
            fingerprint=FINGERPRINT,
            identity=IDENTITY,
            spec=spec,
            models={name: replace(CARD, family=FAMILIES.get(name, "sd")) for name in models},
            files=(file,),
            num_shards=self.num_shards,
            num_bad={},
        )
        self.storage.replace(join(self.root, JOB_RECORD), to_json(record))

    def write_summary(self, **changes: Any) -> None:
        """Write the summary of the parts that are there, their manifest, and `_SUCCESS`."""
        output = Output(self.storage, self.root)
        write_manifest(output, ShardNames([self.num_shards]))
        summary = {"ok": 0, "filtered": 0, "failed": 0, "images": 0, "error_codes": {}}
        summary["size_bytes"] = list_parts(output, ShardNames([self.num_shards])).size_bytes
        summary |= {"fingerprint": FINGERPRINT, "shards": self.num_shards, "last_run": LAST_RUN}
        self.storage.replace(join(self.root, SUMMARY), json.dumps(summary | changes).encode())
        self.storage.replace(join(self.root, SUCCESS), b"")

    def write_part(self, index: int, outcomes: Sequence[RowOutcome], *, embed_images: bool = True) -> str:
        part = build_part(
            outcomes,
            SCHEMA,
            PartIdentity(job="job", shard=self.name(index)),
            embed_images=embed_images,
            footer={},
        )
        uri = join(self.root, "data", f"{self.name(index)}.parquet")
        self.storage.create(uri, part.data, {})
        return uri

    def sheet(self, *, max_images: int = 240) -> Sheet:
        return make_sheet(Output(self.storage, self.root), max_images=max_images)


@pytest.fixture
def output(tmp_path: Path) -> ReportedOutput:
    """An empty output of a job with one shard."""
    root = str(tmp_path / "out")
    made = ReportedOutput(root, LocalStorage(temp_dir=join(root, "_darkroom", "tmp")))
    made.write_job()
    return made


def row(index: int, **changes: Any) -> Row:
    plain = Row(
        index=index,
        row_id=f"row-{index}",
        route=route("text2img", "sd"),
        texts={"prompt": f"prompt {index}", "negative_prompt": None},
        images={},
        seed=index,
        num_images=1,
        parameters={"num_inference_steps": 20, "guidance_scale": 7.5},
        keep={
            "category": pa.array(["coast"]),
            "reference": pa.array([{"bytes": b"kept", "path": None}], IMAGE_TYPE),
        },
        problem=None,
    )
    return replace(plain, **changes)


def route(name: str, model: str) -> ResolvedRoute:
    return ResolvedRoute(name=name, model=model, system=SYSTEMS[0], defaults={})


@cache
def noise(side: int, seed: int = 0) -> bytes:
    """A PNG that no codec makes small."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return encode(pixels, "png")


def made(
    row: Row, data: bytes, *, side: int = 16, path: str = "picture.png", depth: bytes | None = None
) -> RowOutcome:
    image = FinishedImage(
        image_index=0,
        image=StoredImage(data=data, path=path),
        depth=StoredImage(data=depth, path=f"depth-{path}") if depth else None,
        width=side,
        height=side,
        nsfw=False,
    )
    return RowOutcome(row, images=[image])


def withheld(row: Row) -> RowOutcome:
    image = FinishedImage(image_index=0, image=None, width=None, height=None, nsfw=True)
    return RowOutcome(row, images=[image])


def failed(row: Row, code: str = "invalid_image", message: str = "`image` is damaged") -> RowOutcome:
    return RowOutcome(row, problem=RowError(code, message))


def opened(thumbnail: str | None) -> Image.Image:
    assert thumbnail is not None
    head, _, data = thumbnail.partition(",")
    assert head == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_a_sheet_is_one_file_beside_the_parts(output: ReportedOutput) -> None:
    """Its URI comes back, and a later report takes its place."""
    first = write_report(Output(output.storage, output.root))
    output.write_part(0, [made(row(0), noise(16))])

    second = write_report(Output(output.storage, output.root))

    assert first == second == join(output.root, "contact-sheet.html")
    assert len(Markup(output.storage.read(second).decode()).island()["frames"]) == 1


def test_a_sheet_can_stand_in_a_bucket(s3_env: object) -> None:
    """On S3 it is made and kept like on disk."""
    root = f"s3://out/{uuid.uuid4().hex}"
    output = ReportedOutput(root, open_storage(root))
    output.write_job()
    output.write_part(0, [made(row(0), noise(16)), failed(row(1))])

    uri = write_report(Output(output.storage, root))

    island = Markup(output.storage.read(uri).decode()).island()
    assert [len(island["frames"]), len(island["failures"])] == [1, 1]


def test_a_sheet_needs_nothing_from_outside(output: ReportedOutput) -> None:
    """No address in the page leads away from it, and its policy forbids what it could fetch."""
    output.write_part(0, [made(row(0), noise(16))])

    page = render(output.sheet())

    markup = Markup(page)
    addresses = [
        attributes.get(name)
        for _, attributes in markup.elements
        for name in ("src", "href", "action", "srcset")
    ]
    assert all(address.startswith(("data:", "#")) for address in addresses if address)
    assert not re.findall(r"https?:|url\(|@import|fetch\(|innerHTML", page)
    assert markup.policy()["default-src"] == ["'none'"]
    assert markup.policy()["img-src"] == ["data:"]


def test_only_the_page_s_own_script_and_style_may_run(output: ReportedOutput) -> None:
    """The policy names them by their hashes, as a browser computes them."""
    markup = Markup(render(output.sheet()))

    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        digest = hashlib.sha256(markup.text(tag).encode()).digest()
        assert markup.policy()[rule] == [f"'sha256-{base64.b64encode(digest).decode()}'"]


def test_a_hostile_prompt_stays_text(output: ReportedOutput) -> None:
    """It ends no element, begins none, and is found unchanged where the page's script reads it."""
    texts = {"prompt": HOSTILE, "negative_prompt": HOSTILE}
    hostile = row(0, row_id=HOSTILE, texts=texts, keep={"category": pa.array([HOSTILE])})
    output.write_part(0, [made(hostile, noise(16)), failed(replace(hostile, index=1), "bad", HOSTILE)])
    harmless = Markup(render(replace(output.sheet(), frames=(), failures=())))

    markup = Markup(render(output.sheet()))

    assert markup.tags == harmless.tags
    frame, failure = markup.island()["frames"][0], markup.island()["failures"][0]
    assert {frame["row_id"], frame["prompt"], frame["negative_prompt"], frame["keep"]["category"]} == {
        HOSTILE
    }
    assert {failure["prompt"], failure["error_message"]} == {HOSTILE}


def test_a_job_s_name_is_escaped(output: ReportedOutput) -> None:
    """It stands in the page's markup, not only in its data."""
    markup = Markup(render(replace(output.sheet(), name=HOSTILE)))

    assert "img" not in markup.tags
    assert markup.island()["name"] == HOSTILE


def test_every_row_is_there_with_its_image_and_parameters(output: ReportedOutput) -> None:
    """A row shows its own image; values are as the part holds them, also beyond what JavaScript counts."""
    seeds = [2**62 + 1, 3]
    pictures = [noise(16, i) for i in range(2)]
    output.write_part(0, [made(row(i, seed=seeds[i]), data) for i, data in enumerate(pictures)])

    frames = output.sheet().frames

    assert [frame.row_id for frame in frames] == ["row-0", "row-1"]
    assert [frame.seed for frame in frames] == [str(2**62 + 1), "3"]
    assert frames[0].parameters == {"num_inference_steps": "20", "guidance_scale": "7.5"}
    assert frames[0].keep == {"category": "coast"}
    assert frames[1].place == "train-00000-of-00001.parquet, row 1"
    for frame, data in zip(frames, pictures, strict=True):
        with opened(frame.thumbnail) as thumbnail, Image.open(io.BytesIO(data)) as image:
            assert thumbnail.convert("RGB").tobytes() == image.tobytes()


def test_a_depth_map_stands_beside_its_image(output: ReportedOutput) -> None:
    """In the eight bits that a browser shows; its checksum is nothing to read."""
    ramp = (np.arange(256).reshape(16, 16) * 251).astype(np.uint16)
    output.write_part(0, [made(row(0), noise(16), depth=encode(ramp, "png")), made(row(1), noise(16))])

    deep, flat = output.sheet().frames

    with opened(deep.depth) as thumbnail:
        assert np.array_equal(np.asarray(thumbnail.convert("L")), ramp >> 8)
    assert flat.depth is None
    assert deep.keep == {"category": "coast"}


def test_a_frame_tells_the_adapters_of_its_row_and_their_weights(output: ReportedOutput) -> None:
    """As the output has them; a row without any has no text for them."""
    night = AdapterFile(name="night", path="n", sha256="0" * 64, size_bytes=1)
    net = ControlNetCard(path="o", revision="r", subfolder="", variant=None, sha256="1" * 64, size_bytes=1)
    adapted = replace(route("text2img", "sd"), loras={"night": night}, controlnets={"outline": net})
    controls = dict(CONTROL) | {
        "controls": '[{"controlnet": "outline", "controlnet_conditioning_scale": 0.75}]'
    }
    both = controls | {"loras": '{"night": -0.5}'}
    rows = [row(0, route=adapted, parameters=both), row(1, route=adapted, parameters={"loras": "{}"})]
    output.write_part(0, [made(each, noise(16)) for each in rows])

    with_both, plain = output.sheet().frames

    assert with_both.parameters == {"loras": "night -0.5", "controls": "outline 0.75"}
    assert plain.parameters == {"loras": ""}


def test_a_kept_image_stands_beside_the_result(output: ReportedOutput) -> None:
    """As the input had it. One that cannot be opened, or is only named, does not hide the result: its name is
    that of a file of the input, which another one in the output may have."""
    output.storage.create(join(output.root, "images", "named.png"), noise(16, 3), {})
    kept = [{"bytes": noise(24, 1), "path": "a.png"}, {"bytes": b"damaged", "path": None}]
    kept.append({"bytes": None, "path": "images/named.png"})
    rows = [row(i, keep={"reference": pa.array([each], IMAGE_TYPE)}) for i, each in enumerate(kept)]
    output.write_part(0, [made(each, noise(16, each.index)) for each in rows])

    frames = output.sheet().frames

    (reference,) = frames[0].kept_images
    with opened(reference.thumbnail) as thumbnail, Image.open(io.BytesIO(noise(24, 1))) as image:
        assert (reference.column, thumbnail.convert("RGB").tobytes()) == ("reference", image.tobytes())
    assert [frame.kept_images for frame in frames[1:]] == [(), ()]
    assert [(frame.thumbnail is None, frame.problem) for frame in frames] == [(False, "")] * 3


def test_a_damaged_depth_map_says_so(output: ReportedOutput) -> None:
    """As a damaged image does."""
    output.write_part(0, [made(row(0), noise(16), depth=b"no picture")])

    (frame,) = output.sheet().frames

    assert frame.thumbnail is None
    assert "`depth_map`" in frame.problem


@pytest.mark.parametrize(("side", "expected"), [(CRISP_SIDE, CRISP_SIDE), (512, LARGE.side)])
def test_thumbnails_are_small(output: ReportedOutput, side: int, expected: int) -> None:
    """Large images shrink to a size in pixels and bytes, small ones keep theirs."""
    output.write_part(0, [made(row(0), noise(side), side=side)])

    (frame,) = output.sheet().frames

    with opened(frame.thumbnail) as thumbnail:
        assert max(thumbnail.size) == expected
    assert side <= CRISP_SIDE or len(frame.thumbnail) < 2 * LARGE.size_bytes


def test_a_long_prompt_is_cut(output: ReportedOutput) -> None:
    """A prompt of a megabyte does not make a page of one."""
    output.write_part(
        0, [made(row(0, texts={"prompt": "x" * 1_000_000, "negative_prompt": None}), noise(16))]
    )

    assert output.sheet().frames[0].prompt.endswith("x… (1,000,000 characters)")


def test_a_withheld_image_has_a_frame_without_one(output: ReportedOutput) -> None:
    """The row shows as filtered."""
    output.write_part(0, [made(row(0), noise(16)), withheld(row(1))])

    frames = output.sheet().frames

    assert [(frame.status, frame.thumbnail is None) for frame in frames] == [
        ("ok", False),
        ("filtered", True),
    ]


def test_withheld_images_do_not_crowd_out_the_others(output: ReportedOutput) -> None:
    """A sheet of a heavily filtered output is still one to look at."""
    output.write_part(0, [made(row(i), noise(16)) if i % 2 else withheld(row(i)) for i in range(80)])

    statuses = Counter(frame.status for frame in output.sheet(max_images=20).frames)

    assert statuses == {"ok": 18, "filtered": 2}


def test_a_damaged_image_says_so(output: ReportedOutput) -> None:
    """It stops neither the page nor the other frames."""
    output.write_part(0, [made(row(0), b"no picture"), made(row(1), noise(16))])

    damaged, whole = output.sheet().frames

    assert damaged.thumbnail is None
    assert "not an image of a supported format" in damaged.problem
    assert whole.thumbnail


def test_a_damaged_part_is_refused(output: ReportedOutput) -> None:
    """The message names it."""
    uri = join(output.root, "data", "train-00000-of-00001.parquet")
    output.storage.create(uri, b"not Parquet", {})

    with pytest.raises(RefusedError, match="train-00000-of-00001"):
        output.sheet()


def test_failed_rows_stand_with_their_reasons(output: ReportedOutput) -> None:
    """Rows by error code; a code that one row has is not lost among fifty of another."""
    common = [failed(row(i)) for i in range(2 * MAX_FAILURES)]
    rare = failed(
        row(999, texts={"prompt": None, "negative_prompt": None}),
        "invalid_size",
        "width is 13, not a multiple of 8; 16 would do",
    )
    output.write_part(0, [*common, rare])

    sheet = output.sheet()

    assert len(sheet.failures) == MAX_FAILURES
    assert Counter(failure.error_code for failure in sheet.failures)["invalid_image"] == MAX_FAILURES - 1
    found = next(failure for failure in sheet.failures if failure.error_code == "invalid_size")
    assert (found.row_id, found.error_message) == ("row-999", rare.problem.message if rare.problem else "")
    assert sheet.totals.error_codes == (("invalid_image", 2 * MAX_FAILURES), ("invalid_size", 1))
    assert sheet.frames == ()


def test_only_parts_with_failures_are_read_for_them(output: ReportedOutput) -> None:
    """The others are known by their footers."""
    output.num_shards = 12
    output.write_job()
    uris = [output.write_part(i, [failed(row(i)) if i == 7 else made(row(i), noise(16))]) for i in range(12)]
    output.write_summary(ok=11, failed=1)
    counting = CountingStorage(output.storage)

    sheet = make_sheet(Output(counting, output.root), max_images=0)

    assert [failure.row_id for failure in sheet.failures] == ["row-7"]
    assert counting.num_opened == {uri: 2 if uri == uris[7] else 1 for uri in uris}


def test_an_unfinished_output_tells_how_far_it_is(output: ReportedOutput) -> None:
    """Parts that are there are shown, and an old summary is not believed."""
    output.num_shards = 3
    output.write_job(rows_per_shard=10)
    output.write_summary(ok=30)
    output.write_part(1, [made(row(i), noise(16)) for i in range(10)])

    sheet = output.sheet()

    assert (sheet.num_parts, sheet.num_shards) == (1, 3)
    assert (sheet.totals.rows, sheet.num_rows) == (10, 30)
    assert (sheet.last_run, sheet.finished_at) == ("", "")
    assert len(sheet.frames) == 10


@pytest.mark.parametrize("changes", [{"fingerprint": "0" * 32}, {"shards": 2}])
def test_the_summary_of_another_job_is_not_believed(output: ReportedOutput, changes: dict[str, Any]) -> None:
    """Nor one of this job with another number of parts: the parts themselves are counted."""
    output.write_part(0, [made(row(0), noise(16))])
    output.write_summary(ok=7, **changes)

    sheet = output.sheet()

    assert (sheet.totals.ok, sheet.last_run) == (1, "")


def test_an_output_without_parts_has_a_sheet(output: ReportedOutput) -> None:
    """It says that nothing is there."""
    sheet = output.sheet()

    assert (sheet.totals.rows, sheet.frames, sheet.failures) == (0, (), ())
    assert Markup(render(sheet)).island()["rows_done"] == 0


def test_a_finished_output_tells_of_its_last_run(output: ReportedOutput) -> None:
    """As the summary has it; a summary of before this was recorded says nothing of it."""
    output.write_part(0, [made(row(0), noise(16))])
    output.write_summary(ok=5, images=7, error_codes={}, finished_at="2026-11-30T14:39:57+00:00")
    sheet = output.sheet()
    output.write_summary(last_run=None)

    older = output.sheet()

    assert sheet.last_run == "generated 3 images in 6 s (2.0 s/image)"
    assert sheet.finished_at == "2026-11-30T14:39:57+00:00"
    assert (sheet.totals.ok, sheet.totals.images) == (5, 7)
    assert older.last_run == ""


def test_a_folder_without_a_job_has_no_sheet(tmp_path: Path) -> None:
    """The message says what is missing."""
    with pytest.raises(SpecError, match=r"job\.json"):
        write_report(Output(LocalStorage(temp_dir=str(tmp_path / "tmp")), str(tmp_path)))


@pytest.mark.parametrize("root", ["", "s3://elsewhere/out"])
def test_images_that_are_files_are_fetched(output: ReportedOutput, root: str) -> None:
    """From this output, also where it was copied from another place."""
    image = noise(16)
    output.storage.create(join(output.root, "images", "train-00000-of-00001", "a.png"), image, {})
    path = join(root or output.root, "images", "train-00000-of-00001", "a.png")
    output.write_part(0, [made(row(0), image, path=path)], embed_images=False)

    (frame,) = output.sheet().frames

    with opened(frame.thumbnail) as thumbnail:
        assert thumbnail.size == (16, 16)


@pytest.mark.parametrize("path", ["images/../../secret.png", "/images/../../secret.png", "/images/gone.png"])
def test_a_part_cannot_have_other_files_read(output: ReportedOutput, tmp_path: Path, path: str) -> None:
    """Only what lies below the output's own images is opened."""
    (tmp_path / "secret.png").write_bytes(noise(16))
    output.write_part(0, [made(row(0), b"", path=path)], embed_images=False)

    (frame,) = output.sheet().frames

    assert frame.thumbnail is None
    assert frame.problem


def test_models_and_tasks_share_the_sheet(output: ReportedOutput) -> None:
    """A task that few rows have, and a model that one part has, are not lost among the rest."""
    output.num_shards = 100
    output.write_job(rows_per_shard=10, sd="a", xl="b")
    rare = route("img2img", "sd")
    for index in range(100):
        usual = route("text2img", "xl" if index == 61 else "sd")
        rows = [row(i, route=rare if index == 30 and i == 9 else usual) for i in range(10)]
        output.write_part(index, [made(each, noise(16)) for each in rows])

    shown = Counter((frame.task, frame.model) for frame in output.sheet(max_images=40).frames)

    assert shown == {("text2img", "sd"): 29, ("text2img", "xl"): 10, ("img2img", "sd"): 1}


def test_a_large_output_is_not_read_whole(output: ReportedOutput) -> None:
    """Beside one look at every footer, at most MAX_GROUPS row groups are read."""
    output.num_shards = 10
    output.write_job(rows_per_shard=400)
    sizes = [write_groups(output, index, num_groups=40, rows_per_group=10) for index in range(10)]
    output.write_summary(ok=4000)
    counting = CountingStorage(output.storage)

    sheet = make_sheet(Output(counting, output.root), max_images=120)

    assert len(sheet.frames) == 120
    assert len({frame.place.partition(",")[0] for frame in sheet.frames}) == 10
    # Groups twice: once for tasks and statuses, once for the images that were chosen. Footers twice, because
    # these are longer than common ones, which is known when the first one has been read.
    assert sum(counting.num_opened.values()) <= 2 * 10 + 2 * MAX_GROUPS
    footers = 10 * footer_bytes(output)
    assert counting.bytes_read - footers * (2 + 2 * MAX_GROUPS / 10) < sum(sizes) * MAX_GROUPS / 400 * 1.2


def test_a_row_group_is_read_from_its_beginning_and_not_to_its_end(output: ReportedOutput) -> None:
    """As far as the bytes allow, and always for as many rows as are to be shown."""
    output.write_summary(ok=60)
    image = noise(16)
    # Bytes behind the end of a PNG are not its own: each of these weighs 200 kB.
    padding = np.random.default_rng(0).bytes(200_000)
    output.write_part(0, [made(row(i), image + padding) for i in range(60)])
    counting = CountingStorage(output.storage)

    sheet = make_sheet(Output(counting, output.root), max_images=3, image_bytes=2_000_000)

    least = make_sheet(Output(output.storage, output.root), max_images=3, image_bytes=1)
    assert [frame.row_id for frame in sheet.frames] == ["row-1", "row-4", "row-7"]
    assert counting.bytes_read < 4_000_000
    assert [frame.row_id for frame in least.frames] == ["row-0", "row-1", "row-2"]


def test_each_frame_has_the_image_and_the_place_of_its_own_row(output: ReportedOutput) -> None:
    """Over parts, row groups and the rows that are read together; tasks and models interleave."""
    output.num_shards = 2
    output.write_job(rows_per_shard=NUM_FRAMES, sd="a", xl="b")
    tones = {}
    for index in range(2):
        rows = [
            row(
                i,
                row_id=f"{index} {i}",
                route=route("img2img" if i in (5, 6) else "text2img", "xl" if i >= 90 else "sd"),
            )
            for i in range(NUM_FRAMES)
        ]
        pixels = [np.full((4, 6, 3), 100 * index + i, np.uint8) for i in range(NUM_FRAMES)]
        tones |= {f"{index} {i}": 100 * index + i for i in range(NUM_FRAMES)}
        outcomes = [
            failed(each) if i % 34 == 33 else made(each, encode(data, "png"))
            for i, (each, data) in enumerate(zip(rows, pixels, strict=True))
        ]
        regroup(output.write_part(index, outcomes), 33)

    frames = output.sheet().frames

    shown = [f"{index} {i}" for index in range(2) for i in range(NUM_FRAMES) if i % 34 != 33]
    assert [frame.row_id for frame in frames] == shown
    assert [frame.place for frame in frames] == [
        f"train-0000{row_id[0]}-of-00002.parquet, row {row_id[2:]}" for row_id in shown
    ]
    for frame in frames:
        with opened(frame.thumbnail) as thumbnail:
            assert thumbnail.convert("RGB").getpixel((0, 0)) == (tones[frame.row_id],) * 3


def test_each_image_of_a_row_has_a_frame(output: ReportedOutput) -> None:
    """With its index."""
    images = [replace(made(row(0), noise(16, j)).images[0], image_index=j) for j in range(3)]
    output.write_part(0, [RowOutcome(row(0), images=images)])

    frames = output.sheet().frames

    assert [(frame.row_id, frame.image_index) for frame in frames] == [("row-0", j) for j in range(3)]


def test_a_kept_date_that_python_cannot_represent_is_shown(output: ReportedOutput) -> None:
    """As Arrow writes it."""
    uri = output.write_part(0, [made(row(0), noise(16))])
    with pq.ParquetFile(uri) as parquet:
        table, metadata = parquet.read(), parquet.metadata.metadata
    table = table.append_column("day", pa.array([10_000_000], pa.date32()))
    pq.write_table(table.replace_schema_metadata(metadata), uri)

    (frame,) = output.sheet().frames

    assert frame.keep["day"].startswith("29349-")


def test_failed_rows_are_read_from_few_parts(output: ReportedOutput) -> None:
    """However many have some."""
    output.num_shards = MAX_FAILED_PARTS + 4
    output.write_job()
    for index in range(output.num_shards):
        output.write_part(index, [failed(row(index))])
    output.write_summary(failed=output.num_shards)
    counting = CountingStorage(output.storage)

    sheet = make_sheet(Output(counting, output.root), max_images=0)

    assert len(sheet.failures) == MAX_FAILED_PARTS
    assert sum(num > 1 for num in counting.num_opened.values()) == MAX_FAILED_PARTS


def test_failed_rows_of_every_code_are_found_behind_those_of_another(output: ReportedOutput) -> None:
    """Each is shown with its place, over row groups and the rows that are read together."""
    codes = ["common"] * (MAX_ROWS_PER_GROUP + 5) + ["rare"] + ["common"] * 3 + ["rarest"]
    outcomes = [failed(row(i), code) for i, code in enumerate(codes)]
    regroup(output.write_part(0, outcomes), MAX_ROWS_PER_GROUP + 7)

    failures = output.sheet().failures

    places = {failure.error_code: failure.place.rpartition(" ")[2] for failure in failures[::-1]}
    assert places == {code: str(codes.index(code)) for code in ("common", "rare", "rarest")}
    assert all(failure.row_id == f"row-{failure.place.rpartition(' ')[2]}" for failure in failures)


def test_of_very_many_parts_some_are_looked_at_evenly(output: ReportedOutput) -> None:
    """Their footers are read, and the sheet says of how many it knows the failed rows."""
    output.num_shards = 2 * MAX_FOOTERS
    output.write_job()
    uri = output.write_part(0, [made(row(0), noise(16))])
    for index in range(1, output.num_shards):
        os.link(uri, join(output.root, "data", f"{output.name(index)}.parquet"))
    output.write_summary(ok=output.num_shards)
    counting = CountingStorage(output.storage)

    sheet = make_sheet(Output(counting, output.root), max_images=0)

    opened_parts = [int(uri.rpartition("train-")[2][:5]) for uri in counting.num_opened]
    assert sorted(opened_parts) == [*range(1, output.num_shards, 2)]
    assert (sheet.num_parts, sheet.num_searched) == (2 * MAX_FOOTERS, MAX_FOOTERS)


def write_groups(output: ReportedOutput, index: int, *, num_groups: int, rows_per_group: int) -> int:
    """A part of many row groups, as one shard of many images has; its size."""
    outcomes = [made(row(i), noise(48, i % 7), side=48) for i in range(num_groups * rows_per_group)]
    uri = output.write_part(index, outcomes)
    regroup(uri, rows_per_group)
    return Path(uri).stat().st_size


def regroup(uri: str, rows_per_group: int) -> None:
    """Write a part again with row groups of so many rows."""
    with pq.ParquetFile(uri) as parquet:
        table, metadata = parquet.read(), parquet.metadata.metadata
    pq.write_table(table.replace_schema_metadata(metadata), uri, row_group_size=rows_per_group)


def footer_bytes(output: ReportedOutput) -> int:
    """Of the first part."""
    uri = join(output.root, "data", f"{output.name(0)}.parquet")
    return int.from_bytes(Path(uri).read_bytes()[-8:-4], "little") + 8


@pytest.mark.parametrize(
    ("checkpoints", "expected"),
    [
        ({"sd": "demo:sd", "xl": "demo:sdxl"}, ["sd", "xl"]),
        ({"sd": "demo:sd", "xl": "somebody/xl"}, ["sd"]),
        ({"sd": "demo:shapes", "xl": "demo:sdxl"}, ["xl"]),
        ({"sd": "somebody/sd"}, []),
    ],
)
def test_random_weights_are_told(
    output: ReportedOutput, checkpoints: dict[str, str], expected: list[str]
) -> None:
    """Whoever meets noise on the sheet of a demo job reads there that it is meant to be so."""
    output.write_job(**checkpoints)

    page = render(output.sheet())

    assert Markup(page).island()["random_models"] == expected
    assert "random weights: the images are noise by design" in page


def test_spreading_is_even() -> None:
    """All of a few items, else one from the middle of each stretch."""
    assert spread([1, 2], 3) == [1, 2]
    assert spread(range(100), 4) == [12, 37, 62, 87]
    assert spread([1, 2], 0) == []


def test_sharing_fills_up_from_those_that_have_more() -> None:
    """Small strata give all they have, and in doubt one more; no more is taken than asked for."""
    strata = {"few": [1], "many": list(range(10, 50)), "some": [2, 3, 4]}

    assert Counter(len(str(item)) for item in share(strata, 12)) == {1: 4, 2: 8}
    assert len(share(strata, 2)) == 2
    in_doubt = share({"many": range(10, 50), "few": [1, 2, 3]}, 5)
    assert Counter(len(str(item)) for item in in_doubt) == {1: 3, 2: 2}
    assert share({}, 5) == []


def stored(data: bytes, path: str = "step.png") -> StoredImage:
    return StoredImage(data=data, path=path)


def of_chain(row: Row, *steps: bytes, side: int) -> RowOutcome:
    """A row whose result has this side, with the images of its earlier steps."""
    outcome = made(row, noise(side), side=side)
    return RowOutcome(row, images=[replace(outcome.images[0], steps=tuple(map(stored, steps)))])


CHAINS: dict[str, Any] = {
    "poster": {"task": "text2img", "model": "sd", "then": ["touch-up", "upscale"], "keep_steps": True},
    "touch-up": {"task": "img2img", "model": "sd", "strength": 0.4},
    "upscale": {"model": "x4"},
    "text2img": {"model": "sd"},
}


def write_chains(output: ReportedOutput, *outcomes: RowOutcome) -> Sheet:
    output.write_job(rows_per_shard=len(outcomes), routes=CHAINS, sd="a/b", x4="a/x4")
    output.write_part(0, outcomes)
    return output.sheet()


def test_a_chain_is_shown_as_its_steps(output: ReportedOutput) -> None:
    """In their order, each with its task, its model, and the size and the image of its result."""
    poster = row(0, route=route("poster", "sd"))

    (frame,) = write_chains(output, of_chain(poster, noise(16, 1), noise(24, 2), side=96)).frames

    assert [(step.route, step.task, step.model) for step in frame.steps] == [
        ("poster", "text2img", "sd"),
        ("touch-up", "img2img", "sd"),
        ("upscale", "upscale", "x4"),
    ]
    assert [(step.width, step.height) for step in frame.steps] == [(16, 16), (24, 24), (96, 96)]
    assert [opened(step.thumbnail).size for step in frame.steps[:2]] == [(16, 16), (24, 24)]
    assert frame.steps[2].thumbnail is None
    assert opened(frame.thumbnail).size == (96, 96)


def test_a_chain_without_the_images_of_its_steps_has_their_sizes(output: ReportedOutput) -> None:
    """As far as the last one's size tells them; a row of one step has no steps."""
    poster, single = row(0, route=route("poster", "sd")), row(1)

    chain, plain = write_chains(output, of_chain(poster, side=96), made(single, noise(16))).frames

    assert [(step.width, step.height) for step in chain.steps] == [(24, 24), (24, 24), (96, 96)]
    assert [step.thumbnail for step in chain.steps] == [None] * 3
    assert plain.steps == ()


def test_a_damaged_image_of_a_step_does_not_hide_the_result(output: ReportedOutput) -> None:
    """Its step is there without it."""
    poster = row(0, route=route("poster", "sd"))

    (frame,) = write_chains(output, of_chain(poster, b"no image", noise(24), side=96)).frames

    assert [step.thumbnail is None for step in frame.steps] == [True, False, True]
    assert (frame.thumbnail is None, frame.problem) == (False, "")


def test_all_of_a_few_thousand_failed_rows_are_on_the_page(output: ReportedOutput) -> None:
    """Wherever they are: most in one part, and one in each of others."""
    output.num_shards = 12
    output.write_job(rows_per_shard=1500)
    output.write_part(0, [failed(row(i), "common") for i in range(1500)])
    for index in range(1, 12):
        output.write_part(index, [failed(row(index), f"rare-{index % 3}")])

    sheet = output.sheet()

    assert len(sheet.failures) == sheet.totals.failed == 1511
    assert Counter(failure.error_code for failure in sheet.failures) == dict(sheet.totals.error_codes)


def test_a_long_id_and_a_long_reason_do_not_fill_the_page(output: ReportedOutput) -> None:
    """Of an id its ends stay, which tell it from others."""
    long_id = f"first{'x' * 10_000}last"
    output.write_part(
        0, [made(row(0, row_id=long_id), noise(16)), failed(row(1, row_id=long_id), message="y" * 10_000)]
    )

    (frame,), (failure,) = output.sheet().frames, output.sheet().failures

    for shown in (frame.row_id, failure.row_id):
        assert shown.startswith("firstxx")
        assert shown.endswith("xxlast")
        assert len(shown) <= 2001
    assert failure.error_message.endswith("y… (10,000 characters)")
    assert len(failure.error_message) < 350


@cache
def chromium() -> str:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")


def in_browser(page: Path, fragment: str) -> Markup:
    """The page as a browser has it after its script has run with this fragment of the address, offline."""
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", "--virtual-time-budget=5000")
    ran = subprocess.run(
        [chromium(), *options, f"--user-data-dir={page.parent / 'profile'}", f"{page.as_uri()}#{fragment}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return Markup(ran.stdout)


@pytest.mark.skipif(not chromium(), reason="no Chromium on this machine")
def test_a_browser_finds_chains_and_every_failed_row(output: ReportedOutput, tmp_path: Path) -> None:
    """By words of their ids, steps and reasons; numbers tell what is on the page and what there is."""
    poster = row(0, route=route("poster", "sd"), row_id=f"<b>first{'x' * 100}last")
    failures = [failed(row(i), "mask_size" if i % 2 else "invalid_image") for i in range(1, 61)]
    write_chains(output, of_chain(poster, noise(16), noise(16), side=64), *failures)
    output.write_summary(
        ok=1,
        failed=70,
        images=9,
        error_codes={"mask_size": 40, "invalid_image": 30},
        finished_at="2026-11-30",
    )
    page = tmp_path / "page.html"
    page.write_text(render(output.sheet()), encoding="utf-8")

    whole, upscaled, masks, one = (
        in_browser(page, fragment) for fragment in ("", "q=x4", "error=mask_size", "q=row-37")
    )

    assert whole.text_of("count") == "On this page: 1 frame of 9 images, 60 of 70 failed rows."
    assert "the last run generated 3 images in 6 s (2.0 s/image)" in whole.all_text
    assert f"<b>first{'x' * 12}…{'x' * 16}last" in whole.all_text
    assert "poster (text2img) · sd · 16\u00d716" in whole.all_text
    assert "upscale · x4 · 64\u00d764" in whole.all_text
    assert "Shown here: 60 of 70. With Python, all of them: " in whole.all_text
    assert upscaled.text_of("count") == "Found on this page: 1 of 1 frame, 0 of 60 failed rows."
    assert masks.text_of("count") == "Found on this page: 0 of 1 frame, 30 of 60 failed rows."
    assert one.text_of("count") == "Found on this page: 0 of 1 frame, 1 of 60 failed rows."

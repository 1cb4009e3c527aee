"""Facts about input that nobody should trust: a bad row fails alone, and no file takes the machine down."""

import base64
import io
import json
import os
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from pyarrow.parquet.encryption import (
    CryptoFactory,
    EncryptionConfiguration,
    KmsClient,
    KmsConnectionConfig,
)
from rich.console import Console

from actors.images.input_images import MAX_IMAGE_FILE_BYTES, ImageSource, open_image
from actors.inputs.texts import MAX_PROMPT_BYTES
from actors.storage.output import open_output
from actors.storage.uris import normalise
from jobs.output.job_record import claim
from jobs.planning.plan import make_plan
from jobs.survey.survey import make_survey
from jobs.verification.verify import verify_output
from schemas.errors import RowError, SpecError
from schemas.spec.job_spec import JobSpec, ModelSpec
from schemas.spec.spec_file import load_spec
from tests.support.checkpoints import NO_WEIGHTS, paper_checkpoint
from tests.support.engines import GreyEngine
from tests.support.in_process import (
    Record,
    drawn_image,
    encoded,
    job_spec,
    make,
    mask,
    outcomes,
    plan_for,
    png_of,
    worker_for,
    write_rows,
)
from tests.support.running import write_spec

GOOD = {"row_id": "good", "prompt": "a fox"}
DAMAGED = b"caf\xe9 \xff"
"""Latin-1, and no UTF-8."""
FILE_TIMEOUT_S = 60

pytestmark = pytest.mark.timeout(FILE_TIMEOUT_S)


def table(folder: Path, **columns: object) -> JobSpec:
    """A job over one file of these columns, with `row_id`s of its own."""
    path = folder / "in.parquet"
    pq.write_table(pa.table(columns), path)
    return job_spec(path, folder / "out")


def damaged_texts(*values: bytes | None) -> pa.Array:
    """Texts that a careless writer has put down as they came."""
    return pa.array(values, pa.binary()).view(pa.string())


@pytest.mark.parametrize("column", ["prompt", "negative_prompt", "task", "scheduler", "row_id", "sld_preset"])
@pytest.mark.parametrize("in_dictionary", [False, True])
def test_a_text_that_is_no_utf_8_fails_its_row_alone(
    tmp_path: Path, column: str, in_dictionary: bool
) -> None:
    """Whatever column it stands in; the output has its beginning, with replacement characters."""
    texts = damaged_texts(b"a", DAMAGED) if column in ("prompt", "row_id") else damaged_texts(None, DAMAGED)
    columns = {"row_id": pa.array(["a", "b"]), "prompt": pa.array(["x", "y"])} | {column: texts}
    pq.write_table(pa.table(columns), tmp_path / "in.parquet", use_dictionary=in_dictionary)

    made = make(job_spec(tmp_path / "in.parquet", tmp_path / "out"), GreyEngine())

    assert outcomes(made) == ["ok", "invalid_text"]
    assert f"`{column}` is not UTF-8: byte 3" in made.rows[1]["error_message"]
    if column in ("prompt", "row_id"):
        assert made.rows[1][column] == "caf� �"


@pytest.mark.parametrize("nested", [False, True])
def test_damaged_texts_in_kept_columns_fail_their_rows_too(tmp_path: Path, nested: bool) -> None:
    """A part with such a text could not be read by anyone."""
    texts = damaged_texts(b"fine", DAMAGED)
    kept = pa.ListArray.from_arrays([0, 1, 2], texts) if nested else texts
    spec = table(tmp_path, row_id=["a", "b"], prompt=["x", "y"], note=kept)
    spec = spec.model_copy(update={"input": spec.input.model_copy(update={"keep": ["note"]})})

    made = make(spec, GreyEngine())

    assert outcomes(made) == ["ok", "invalid_text"]
    assert made.rows[0]["note"] == (["fine"] if nested else "fine")


@pytest.mark.parametrize("nested", [False, True])
def test_a_kept_value_outside_of_its_type_fails_its_row_with_the_value(tmp_path: Path, nested: bool) -> None:
    """Three days are no time of day. No text is at fault, and none is named."""
    times = pa.array([1, 259_200_000_000], pa.int64()).view(pa.time64("us"))
    kept = pa.ListArray.from_arrays([0, 1, 2], times) if nested else times
    spec = table(tmp_path, row_id=["a", "b"], prompt=["x", "y"], when=kept)
    spec = spec.model_copy(update={"input": spec.input.model_copy(update={"keep": ["when"]})})

    made = make(spec, GreyEngine())

    assert outcomes(made) == ["ok", "invalid_value"]
    said = "`when` has a value that its type does not allow: time64[us] 259200000000 is not within"
    assert made.rows[1]["error_message"].startswith(said)


def test_kept_values_that_python_has_no_word_for_come_through(tmp_path: Path) -> None:
    """Nanoseconds, and dates of years with more than four digits."""
    kept = {
        "when": pa.array([1, None], pa.int64()).cast(pa.timestamp("ns")),
        "day": pa.array([10_000_000, None], pa.int32()).cast(pa.date32()),
        "pairs": pa.array([[(1, 2)], None], pa.map_(pa.int64(), pa.int64())),
    }
    spec = table(tmp_path, row_id=["a", "b"], prompt=["x", "y"], **kept)
    spec = spec.model_copy(update={"input": spec.input.model_copy(update={"keep": [*kept]})})

    plan = plan_for(spec)
    with worker_for(plan, GreyEngine()) as worker:
        worker.run(next(plan.shards()))
        again = worker.run(replace(next(plan.shards()), again=()))

    assert again.committed
    part = pq.read_table(next((tmp_path / "out" / "data").iterdir()))
    assert {name: part[name].combine_chunks() for name in kept} == kept


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["a", None], pa.string_view()),
        pa.array([["a"], None], pa.list_(pa.string_view())),
        pa.array([{"s": [b"a"]}, None], pa.struct([("s", pa.list_view(pa.binary_view()))])),
        pa.array([[("a", "b")], None], pa.map_(pa.string(), pa.string_view())),
    ],
    ids=str,
)
def test_kept_views_become_plain_columns(tmp_path: Path, values: pa.Array) -> None:
    """Arrow reads them, and can pick no rows of them; whoever reads the parts is spared that."""
    spec = table(tmp_path, row_id=["a", "b"], prompt=["x", "y"], note=values)
    spec = spec.model_copy(update={"input": spec.input.model_copy(update={"keep": ["note"]})})

    made = make(spec, GreyEngine())

    assert [row["note"] for row in made.rows] == values.to_pylist()
    assert "_view" not in str(pq.read_schema(next((tmp_path / "out" / "data").iterdir())).field("note").type)


def test_a_kept_column_that_arrow_cannot_copy_is_refused(tmp_path: Path) -> None:
    """Such as lists of an extension type that has views."""
    texts = pa.ExtensionArray.from_storage(pa.json_(pa.string_view()), pa.array(["{}"], pa.string_view()))
    spec = table(tmp_path, prompt=["x"], note=pa.ListArray.from_arrays([0, 1], texts))
    spec = spec.model_copy(update={"input": spec.input.model_copy(update={"keep": ["note"]})})

    with pytest.raises(SpecError, match=r"input\.keep: column `note` is list"):
        make_survey(spec)


def test_a_damaged_id_is_the_same_for_verify(tmp_path: Path) -> None:
    """Both read it as the same text."""
    spec = table(tmp_path, row_id=damaged_texts(b"a", DAMAGED), prompt=["x", "y"])
    plan, findings = make_plan(make_survey(spec))
    claim(open_output(spec.output.path), plan, findings)
    make(spec, GreyEngine())

    said = io.StringIO()
    verify_output(spec.output.path, Console(file=said, width=200))
    assert "verified" in said.getvalue()


def test_a_text_of_megabytes_fails_its_row_alone(tmp_path: Path) -> None:
    """Its beginning is recorded, not all of it; the longest that is allowed is made."""
    rows: list[Record] = [
        GOOD | {"row_id": "longest", "prompt": "x" * MAX_PROMPT_BYTES},
        {"row_id": "b", "prompt": "é" * 5_000_000},
    ]

    made = make(job_spec(write_rows(tmp_path / "in.parquet", rows), tmp_path / "out"), GreyEngine())

    assert outcomes(made) == ["ok", "text_too_long"]
    assert made.rows[1]["prompt"] == "é" * 100
    assert len(made.parts[0]) < 200_000


def test_a_size_of_millions_of_numbers_fails_its_row_in_a_few_words(tmp_path: Path) -> None:
    """They are not written out."""
    lists = pa.ListArray.from_arrays([0, 2, 3_000_000], np.full(3_000_000, 64))
    spec = table(tmp_path, row_id=["a", "b"], prompt=["x", "y"], original_size=lists)
    folder = paper_checkpoint(tmp_path / "sdxl", pipeline="StableDiffusionXLPipeline")
    models = {"sdxl": ModelSpec(checkpoint=str(folder))}
    route = spec.routes["text2img"].model_copy(update={"model": "sdxl"})

    made = make(spec.model_copy(update={"models": models, "routes": {"text2img": route}}), GreyEngine())

    assert outcomes(made) == ["ok", "invalid_parameter"]
    said = "original_size is [64, 64, 64, 64] ... (2,999,998 in all); it must be two whole numbers from 0 to"
    assert made.rows[1]["error_message"].startswith(said)


def test_a_decompression_bomb_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """30,000 times 30,000 pixels are 900 MB: the header is enough to refuse them."""
    bomb = {"bytes": png_of(30_000, 30_000), "path": None}
    row = {"row_id": "b", "prompt": "x", "task": "img2img", "image": bomb}
    decoded = []
    monkeypatch.setattr(PngImageFile, "load", lambda image: decoded.append(image.size))

    made = make(job_spec(write_rows(tmp_path / "in.parquet", [row]), tmp_path / "out"), GreyEngine())

    assert outcomes(made) == ["image_too_large"]
    assert decoded == []


def test_a_jpeg_of_thousands_of_scans_is_not_decoded() -> None:
    """It would be a worker's work for hours: each of them is a few bytes and passes over all pixels."""
    data: bytes = encoded(Image.new("RGB", (64, 64)), "JPEG", progressive=True)["bytes"]
    last = data[data.rindex(b"\xff\xda") : -2]
    bomb = data[:-2] + 1_000 * last + data[-2:]

    assert open_image("image", ImageSource(data=data, uri=None), lambda uri: b"").decode().size == (64, 64)
    with pytest.raises(RowError, match="more than 500 scans"):
        open_image("image", ImageSource(data=bomb, uri=None), lambda uri: b"")


def with_chunk_before(png: bytes, name: bytes, content: bytes) -> bytes:
    """A turn to the side, written before the chunk of this name."""
    chunk = struct.pack(">I", len(content)) + b"eXIf" + content
    at = png.index(name) - 4
    return png[:at] + chunk + struct.pack(">I", zlib.crc32(chunk[4:])) + png[at:]


@pytest.mark.parametrize("exif_before", [None, b"IDAT", b"IEND"])
def test_a_png_is_decoded_once_unless_words_stand_behind_its_pixels(
    monkeypatch: pytest.MonkeyPatch, exif_before: bytes | None
) -> None:
    """Its header is looked at without the pixels where that is all there is, and every turn is seen."""
    decoded: list[object] = []
    load = PngImageFile.load
    monkeypatch.setattr(PngImageFile, "load", lambda image: decoded.append(image) or load(image))
    exif = Image.Exif()
    exif[0x0112] = 6
    data: bytes = drawn_image((40, 24))["bytes"]
    decoded.clear()
    if exif_before:
        data = with_chunk_before(data, exif_before, exif.tobytes().removeprefix(b"Exif\x00\x00"))

    image = open_image("image", ImageSource(data=data, uri=None), lambda uri: b"")

    assert bool(decoded) == (exif_before == b"IEND")
    assert (image.width, image.height) == ((24, 40) if exif_before else (40, 24))
    assert image.decode().size == (image.width, image.height)


def animated(image_format: str) -> Record:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    return encoded(frames[0], image_format, save_all=True, append_images=frames[1:])


def two_images() -> Record:
    """As telephones take them: an image, and another one behind it."""
    pictures = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    return encoded(pictures[0], "MPO", save_all=True, append_images=pictures[1:])


def sixteen_bits() -> Record:
    return encoded(Image.fromarray(np.full((64, 64), 40_000, np.uint16)))


@pytest.mark.parametrize(
    ("image", "outcome"),
    [
        (drawn_image(mode="CMYK", image_format="JPEG"), "ok"),
        (drawn_image(mode="P"), "ok"),
        (drawn_image(mode="RGBA"), "ok"),
        (drawn_image(mode="LA"), "ok"),
        (drawn_image(mode="1"), "ok"),
        (sixteen_bits(), "image_mode"),
        (animated("PNG"), "animated_image"),
        (animated("WEBP"), "animated_image"),
        (two_images(), "ok"),
        (animated("GIF"), "invalid_image"),
        ({"bytes": b"", "path": None}, "invalid_image"),
        ({"bytes": None, "path": None}, "missing_image"),
        ({"bytes": b"<svg/>", "path": None}, "invalid_image"),
        ({"bytes": drawn_image()["bytes"][:30], "path": None}, "invalid_image"),
        ({"bytes": drawn_image()["bytes"][:-300], "path": None}, "invalid_image"),
    ],
)
def test_images_of_every_kind_are_made_rgb_or_refused(tmp_path: Path, image: Record, outcome: str) -> None:
    """A telephone's JPEG with a second image behind is one image."""
    row = {"row_id": "r", "prompt": "x", "task": "inpaint", "image": image, "mask_image": mask()}

    made = make(job_spec(write_rows(tmp_path / "in.parquet", [row, GOOD]), tmp_path / "out"), GreyEngine())

    assert outcomes(made) == [outcome, "ok"]


def with_exif(image_format: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    data: bytes = drawn_image((40, 24), image_format=image_format)["bytes"]
    file = io.BytesIO()
    Image.open(io.BytesIO(data)).save(file, image_format, exif=exif)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of EXIF that lies.
@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP"])
def test_no_damage_makes_an_image_fail_in_another_way(image_format: str) -> None:
    """Bytes changed, cut out and put in, EXIF among them, by a seed: it opens, or it is a row's error."""
    whole = with_exif(image_format)
    dice = random.Random(image_format)
    refused = 0
    for _ in range(1_500):
        data = bytearray(whole)
        for _ in range(dice.choice([1, 2, 8])):
            at = dice.randrange(min(len(data), dice.choice([80, len(data)])))
            data[at : at + dice.choice([0, 1, 1, 1, 4])] = bytes([dice.choice([0, 255, dice.randrange(256)])])
        if image_format == "PNG":
            data = bytearray(resealed(bytes(data)))
        try:
            image = open_image("image", ImageSource(data=bytes(data), uri=None), lambda uri: b"")
            if image.width * image.height < 1_000_000:
                assert image.decode().mode == "RGB"
        except RowError:
            refused += 1

    assert refused > 100


def resealed(png: bytes) -> bytes:
    """With the checksums that fit its chunks: a reader looks at no others."""
    out, at = png[:8], 8
    while at + 12 <= len(png):
        size = struct.unpack(">I", png[at : at + 4])[0]
        content = png[at + 4 : at + 8 + size]
        out += png[at : at + 4] + content + struct.pack(">I", zlib.crc32(content))
        at += 12 + size
    return out


@pytest.mark.parametrize(
    "uri", ["rows/pipe", "rows", "rows/huge.png", "x" * 5_000, "a\x00b", "rows/in.parquet"]
)
def test_a_row_cannot_name_what_would_be_read_for_ever(tmp_path: Path, uri: str) -> None:
    """A pipe, a folder, a file of terabytes, names that are none."""
    (tmp_path / "rows").mkdir()
    os.mkfifo(tmp_path / "rows" / "pipe")
    with open(tmp_path / "rows" / "huge.png", "wb") as huge:
        huge.truncate(MAX_IMAGE_FILE_BYTES + 1)
    (tmp_path / "rows" / "in.parquet").write_bytes(b"PAR1")
    rows: list[Record] = [{"row_id": "bad", "prompt": "x", "task": "img2img", "image": uri}]

    path = write_rows(tmp_path / "in.parquet", rows, {"image": pa.string()})
    made = make(job_spec(path, tmp_path / "out"), GreyEngine())

    codes = {
        "rows/huge.png": "image_too_large",
        "x" * 5_000: "text_too_long",
        "a\x00b": "disallowed_uri",
        "rows/in.parquet": "invalid_image",
    }
    assert outcomes(made) == [codes.get(uri, "unreadable_uri")]
    assert len(made.rows[0]["error_message"]) < 500


@pytest.mark.parametrize(
    "uri",
    [
        "http://169.254.169.254/latest/meta-data/",
        "file:///etc/passwd",
        "simplecache::s3://bucket/key",
        "gs://bucket/key",
        "s3://key:sec/ret@bucket/a.png",
        "s3://bucket/../other",
        "~/secret.png",
        "https://host/a.png?X-Amz-Signature=sec/ret&x=1",
    ],
)
def test_a_row_reaches_no_other_host_and_its_secret_is_not_recorded(tmp_path: Path, uri: str) -> None:
    """Nothing is sent: these tests have no network, and no credentials."""
    rows: list[Record] = [{"row_id": "bad", "prompt": "x", "task": "img2img", "image": uri}]

    path = write_rows(tmp_path / "in.parquet", rows, {"image": pa.string()})
    made = make(job_spec(path, tmp_path / "out"), GreyEngine())

    assert outcomes(made) == ["image_url" if uri.startswith("http") else "disallowed_uri"]
    assert b"sec/ret" not in made.parts[0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("guidance_scale", float("nan")),
        ("guidance_scale", float("-inf")),
        ("num_inference_steps", 10**18),
        ("seed", -1),
        ("num_images_per_prompt", 10**9),
        ("height", -64),
        ("scheduler_options", "[" * 2_000),
        ("scheduler_options", '{"__class__": "os.system"}'),
        ("scheduler", "os.system"),
    ],
)
def test_a_senseless_parameter_fails_its_row(tmp_path: Path, field: str, value: object) -> None:
    """By rule, before anything is made."""
    rows: list[Record] = [GOOD | {"row_id": "bad", field: value}, GOOD]

    made = make(job_spec(write_rows(tmp_path / "in.parquet", rows), tmp_path / "out"), GreyEngine())

    code = outcomes(made)
    assert code[0] in ("invalid_parameter", "invalid_size", "invalid_scheduler")
    assert code[1] == "ok"


def with_text_encoders(folder: Path, pipeline: str, **layers: int) -> JobSpec:
    """A checkpoint of no weights whose text encoders have so many layers."""
    checkpoint = paper_checkpoint(folder / "sd", pipeline=pipeline)
    index = json.loads((checkpoint / "model_index.json").read_text())
    for name, num_layers in layers.items():
        index[name] = ["transformers", "CLIPTextModel"]
        (checkpoint / name).mkdir()
        (checkpoint / name / "config.json").write_text(json.dumps({"num_hidden_layers": num_layers}))
        (checkpoint / name / "model.safetensors").write_bytes(NO_WEIGHTS)
    (checkpoint / "model_index.json").write_text(json.dumps(index))
    rows: list[Record] = [{"row_id": f"{skip}", "prompt": "x", "clip_skip": skip} for skip in (3, 4, 5)]
    models = {"sd": {"checkpoint": str(checkpoint)}}
    routes = {"text2img": {"model": "sd"}}
    path = write_rows(folder / "in.parquet", rows)
    return job_spec(path, folder / "out", models=models, routes=routes)


@pytest.mark.parametrize(
    ("pipeline", "layers", "most"),
    [
        ("StableDiffusionPipeline", {"text_encoder": 4}, 4),
        ("StableDiffusionXLPipeline", {"text_encoder": 4, "text_encoder_2": 20}, 3),
    ],
)
def test_a_clip_skip_of_more_layers_than_there_are_fails_its_row_at_the_plan(
    tmp_path: Path, pipeline: str, layers: dict[str, int], most: int
) -> None:
    """The checkpoint's configuration tells; XL counts from the last layer but one."""
    spec = with_text_encoders(tmp_path, pipeline, **layers)

    _, findings = make_plan(make_survey(spec))

    assert [bad.row_id for bad in findings.bad_rows] == [str(skip) for skip in (3, 4, 5) if skip > most]
    said = f"invalid_parameter: clip_skip is 5; model `sd` takes at most {most}"
    assert str(findings.bad_rows[-1].problem) == said


def test_a_route_s_clip_skip_of_more_layers_than_there_are_is_refused(tmp_path: Path) -> None:
    """Before any row is looked at."""
    spec = with_text_encoders(tmp_path, "StableDiffusionPipeline", text_encoder=4)
    route = spec.routes["text2img"].model_copy(update={"clip_skip": 5})

    with pytest.raises(SpecError, match=r"routes\.text2img\.clip_skip: 5 is more than the 4 that model `sd`"):
        make_survey(spec.model_copy(update={"routes": {"text2img": route}}))


def test_an_image_smaller_than_one_latent_fails_its_row(tmp_path: Path) -> None:
    """By its header: img2img would cut it down to nothing. Inpainting paints it all the same."""
    rows: list[Record] = [
        {
            "row_id": f"{task} {size}",
            "prompt": "x",
            "task": task,
            "image": drawn_image(size),
            "mask_image": mask(size),
        }
        for task in ("img2img", "inpaint")
        for size in ((1, 1), (64, 7), (8, 8))
    ]

    made = make(job_spec(write_rows(tmp_path / "in.parquet", rows), tmp_path / "out"), GreyEngine())

    assert outcomes(made) == ["invalid_size", "invalid_size", "ok", "ok", "ok", "ok"]
    assert made.rows[1]["error_message"] == "`image` is 64x7; img2img needs at least 8 pixels a side"


@pytest.mark.parametrize("column", ["original_size", "negative_crops_coords_top_left"])
def test_a_pair_beyond_all_signed_numbers_fails_its_row_alone(tmp_path: Path, column: str) -> None:
    """Unsigned numbers of 64 bits go twice as far as signed ones."""
    pairs = pa.array([[2**64 - 1, 64], [64, 64], None], pa.list_(pa.uint64()))
    spec = table(tmp_path, row_id=["bad", "b", "c"], prompt=["x"] * 3, **{column: pairs})
    folder = paper_checkpoint(tmp_path / "sdxl", pipeline="StableDiffusionXLPipeline")
    models = {"sdxl": ModelSpec(checkpoint=str(folder))}
    route = spec.routes["text2img"].model_copy(update={"model": "sdxl"})

    made = make(spec.model_copy(update={"models": models, "routes": {"text2img": route}}), GreyEngine())

    assert outcomes(made) == ["invalid_parameter", "ok", "ok"]
    assert f"{column} is [18446744073709551615, 64]; it must be two whole" in made.rows[0]["error_message"]
    assert made.rows[1][column] == [64, 64]


def twice_the_same_name(folder: Path) -> None:
    columns = [pa.array(["a"]), pa.array(["b"])]
    pq.write_table(pa.Table.from_arrays(columns, names=["prompt", "prompt"]), folder / "a.parquet")


def a_list_of_prompts(folder: Path) -> None:
    pq.write_table(pa.table({"prompt": [["a"], ["b"]]}), folder / "a.parquet")


def a_drifting_schema(folder: Path) -> None:
    pq.write_table(pa.table({"prompt": ["a"]}), folder / "a.parquet")
    pq.write_table(pa.table({"prompt": [b"a"]}), folder / "b.parquet")


def a_cut_file(folder: Path) -> None:
    pq.write_table(pa.table({"prompt": ["a"] * 1000}), folder / "a.parquet")
    data = (folder / "a.parquet").read_bytes()
    (folder / "a.parquet").write_bytes(data[: len(data) // 2])


class NoKms(KmsClient):
    """Wraps nothing."""

    def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> bytes:
        return base64.b64encode(key_bytes)

    def unwrap_key(self, wrapped_key: bytes, master_key_identifier: str) -> bytes:
        return base64.b64decode(wrapped_key)


def encrypted_columns(folder: Path, column: str = "prompt") -> None:
    """Below a footer that everybody can read."""
    table = pa.table({"prompt": ["a"], "seed": [1]})
    keys = EncryptionConfiguration(footer_key="f", column_keys={"c": [column]}, plaintext_footer=True)
    factory = CryptoFactory(lambda config: NoKms())
    properties = factory.file_encryption_properties(KmsConnectionConfig(), keys)
    with pq.ParquetWriter(folder / "a.parquet", table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)


def encrypted_columns_below_no_signature(folder: Path, column: str = "prompt") -> None:
    """Somebody has cut it off, so that the footer is exactly as long as it is in other files."""
    encrypted_columns(folder, column)
    data = (folder / "a.parquet").read_bytes()
    size = pq.read_metadata(folder / "a.parquet").serialized_size
    begin = len(data) - 8 - struct.unpack("<I", data[-8:-4])[0]
    (folder / "a.parquet").write_bytes(data[: begin + size] + struct.pack("<I", size) + b"PAR1")


def encrypted_columns_behind_others(folder: Path) -> None:
    """The last of them."""
    encrypted_columns_below_no_signature(folder, "seed")


def a_footer_of_noise(folder: Path) -> None:
    pq.write_table(pa.table({"prompt": ["a"] * 1000}), folder / "a.parquet")
    data = bytearray((folder / "a.parquet").read_bytes())
    data[-60:-8] = random.Random(0).randbytes(52)
    (folder / "a.parquet").write_bytes(data)


def a_footer_of_megabytes(folder: Path) -> None:
    size = 17_000_001
    (folder / "a.parquet").write_bytes(b"PAR1" + bytes(size) + struct.pack("<I", size) + b"PAR1")


def a_footer_of_too_long_a_list(folder: Path) -> None:
    """Of so many columns that the bytes they need at least, as 32 bits count them, are few: CVE-2026-55969 of
    the Thrift in pyarrow 26, which pyarrow's own limit of a million comes before."""
    field, num = b"\x15\x02\x19\xfc", 0x4000_0001
    footer = field + bytes(0x80 | num >> shift & 0x7F for shift in (0, 7, 14, 21)) + bytes([num >> 28])
    (folder / "a.parquet").write_bytes(b"PAR1" + footer + struct.pack("<I", len(footer)) + b"PAR1")


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (a_footer_of_megabytes, "its footer has 17,000,001 bytes, and at most 16,777,216 are read; write it"),
        (a_footer_of_too_long_a_list, "is not a readable Parquet file: Couldn't deserialize thrift"),
        (a_footer_of_too_long_a_list, "Exceeded size limit"),
        (twice_the_same_name, "2 columns of the name `prompt`"),
        (a_list_of_prompts, "column `prompt` is list<element: string>"),
        (a_drifting_schema, "column `prompt` is binary in"),
        (a_cut_file, "is not a readable Parquet file"),
        (a_footer_of_noise, "is not a readable Parquet file"),
        (encrypted_columns, "a.parquet is encrypted"),
        (encrypted_columns_below_no_signature, "a.parquet is encrypted"),
        (encrypted_columns_behind_others, "a.parquet is encrypted"),
    ],
)
def test_a_file_that_cannot_be_input_is_named(
    tmp_path: Path, write: Callable[[Path], None], says: str
) -> None:
    """Exit code 2, before any row is made."""
    (tmp_path / "rows").mkdir()
    write(tmp_path / "rows")

    with pytest.raises(SpecError) as raised:
        make_plan(make_survey(job_spec(tmp_path / "rows", tmp_path / "out")))

    assert says in str(raised.value)


@pytest.mark.parametrize("name", [b"a\nb.parquet", b"\x1b[2J.parquet", b"a::b.parquet", b"\xff.parquet"])
def test_a_file_of_a_name_that_no_worker_could_be_told_is_refused_by_the_plan(
    tmp_path: Path, name: bytes
) -> None:
    """Where it is found in a folder; control characters are written out."""
    (tmp_path / "rows").mkdir()
    good = write_rows(tmp_path / "rows" / "good.parquet", [GOOD])
    os.rename(os.fsencode(good), os.path.join(os.fsencode(tmp_path / "rows"), name))

    with pytest.raises(SpecError, match=r"^input\.path: '") as raised:
        make_survey(job_spec(tmp_path / "rows", tmp_path / "out"))

    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    "path",
    [
        "s3://AKIA123:sec/ret@bucket/rows",
        "https://me:sec/ret@host/rows",
        "https://host/rows?X-Amz-Security-Token=sec/ret",
        "s3://AKIA123:sec/ret@bucket/a::b",
        "s3://bucket/rows?AWSSecretAccessKey=sec/ret",
    ],
)
def test_a_secret_in_a_path_is_not_repeated(path: str) -> None:
    """The refusal goes into logs that many read."""
    with pytest.raises(SpecError) as raised:
        normalise(path)

    assert "sec/ret" not in str(raised.value)
    assert "***" in str(raised.value)


@pytest.mark.parametrize(
    "sections",
    [
        {"aws_secret_access_key": "sec/ret"},
        {"input": {"path": "x", "storage_options": {"secret": "sec/ret"}}},
        {"models": {"sd": {"checkpoint": "a/b", "token": "sec/ret"}}},
        {"models": {"sd": {"checkpoint": "https://me:sec/ret@huggingface.co/a/b"}}},
        {"workers": {"env": {"HF_TOKEN": "sec/ret"}}},
        {"default_route": "hf_sec/ret".replace("/", "x" * 30)},
        {"models": {"sd": {"checkpoint": "a/b", "revision": "AKIASECRET0123456789"}}},
        {"input": {"path": ["rows", "ghp_sec/ret".replace("/", "x" * 30)]}},
        {"hf_sec/ret".replace("/", "x" * 30): 1},
        {"name": "-----BEGIN RSA PRIVATE KEY-----\nsec/ret"},
    ],
)
def test_a_secret_in_a_spec_is_refused_and_not_repeated(tmp_path: Path, sections: Record) -> None:
    """There is no key for one."""
    path = write_spec(tmp_path / "job.yaml", "rows", "out", **sections)

    with pytest.raises(SpecError) as raised:
        load_spec(path)

    said = str(raised.value)
    assert not any(secret in said for secret in ("sec/ret", "secxxx", "SECRET", "BEGIN"))


def test_a_secret_in_an_override_is_not_repeated(tmp_path: Path) -> None:
    """The key that was set is named, and not its value."""
    path = write_spec(tmp_path / "job.yaml", "rows", "out")

    with pytest.raises(SpecError, match=r"^--set models.sd.revision: a value here has the form of") as raised:
        load_spec(path, [f"models.sd.revision=hf_{'x' * 34}"])

    assert "xxx" not in str(raised.value)

"""From a shard of rows to its part: the row contract."""

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from actors.engine.cohorts import samples_of
from actors.engine.diffusers_engine import DiffusersEngine
from actors.engine.engine import DeviceUse, Generated
from actors.engine.samples import Sample
from actors.rows.opened_rows import OpenedRow
from actors.rows.row import derived_seed
from actors.storage.local_disk import LocalStorage
from actors.storage.objects import Buffer, Storage
from actors.storage.output import Output
from actors.storage.stores import Stores
from actors.worker import Worker
from schemas.errors import ReclaimedError, RefusedError, RowError
from schemas.job import merge_failed_rows
from tests.support.engines import GreyEngine
from tests.support.in_process import (
    Record,
    drawn_image,
    encoded,
    image_of,
    job_spec,
    make,
    mask,
    model_cache,
    plan_for,
    read_output,
    worker_for,
    write_rows,
)

BROKEN_PNG = {"bytes": drawn_image()["bytes"][:-200], "path": None}

MIXED: list[Record] = [
    {"row_id": "a", "prompt": "one", "seed": 1},
    {"row_id": "b", "prompt": None, "seed": 1},
    {"row_id": "c", "prompt": "three", "task": "img2img", "image": drawn_image(), "strength": 0.5},
    {"row_id": "d", "prompt": "four", "task": "img2img", "image": BROKEN_PNG},
    {"row_id": "e", "prompt": "five", "task": "paint"},
    {"row_id": "f", "prompt": "six", "num_images_per_prompt": 3, "seed": 10},
    {
        "row_id": "g",
        "prompt": "seven",
        "task": "inpaint",
        "image": drawn_image(),
        "mask_image": mask((32, 32)),
    },
    {"row_id": "h", "prompt": "eight", "width": 60},
]


def test_every_row_has_one_outcome_in_its_place(tmp_path: Path) -> None:
    """Bad rows keep their place with a null image, a code and a reason; good ones are made."""
    made = make(job_spec(write_rows(tmp_path / "in.parquet", MIXED), tmp_path / "out"))

    seen = [(row["row_id"], row["error_code"] or row["status"]) for row in made.rows]
    # Rows that no model can take come last: they are a shard of their own.
    assert seen == [
        ("a", "ok"),
        ("b", "missing_prompt"),
        ("c", "ok"),
        ("d", "invalid_image"),
        ("f", "ok"),
        ("f", "ok"),
        ("f", "ok"),
        ("g", "mask_size"),
        ("h", "invalid_size"),
        ("e", "unknown_task"),
    ]
    failed = [row for row in made.rows if row["status"] == "failed"]
    assert all(row["image"] is None and row["error_message"] for row in failed)
    assert sum(report.failed for report in made.reports) == len(failed) == 5
    assert sum(report.ok for report in made.reports) == 3
    unforeseen = merge_failed_rows(report.unforeseen for report in made.reports)
    assert {code: failed.num_rows for code, failed in unforeseen.items()} == {
        "invalid_image": 1,
        "mask_size": 1,
    }


def test_image_j_of_a_row_uses_seed_plus_j(tmp_path: Path) -> None:
    """So one row for three images makes what three rows with three seeds make."""
    three = [{"row_id": "all", "prompt": "x", "seed": 10, "num_images_per_prompt": 3}]
    single = [{"row_id": str(10 + j), "prompt": "x", "seed": 10 + j} for j in range(3)]

    together = make(job_spec(write_rows(tmp_path / "a.parquet", three), tmp_path / "a"))
    apart = make(job_spec(write_rows(tmp_path / "b.parquet", single), tmp_path / "b"))

    assert [row["seed"] for row in together.rows] == [10, 11, 12]
    assert [row["image_index"] for row in together.rows] == [0, 1, 2]
    assert [row["image_sha256"] for row in together.rows] == [row["image_sha256"] for row in apart.rows]


def test_a_row_without_a_seed_gets_one_from_the_job_and_its_id(tmp_path: Path) -> None:
    """Not from its place: the same id has the same seed in any file, and another one in another job."""
    rows = [{"row_id": name, "prompt": "x"} for name in "abc"]
    forward = make(job_spec(write_rows(tmp_path / "a.parquet", rows), tmp_path / "a"))
    backward = make(job_spec(write_rows(tmp_path / "b.parquet", rows[::-1]), tmp_path / "b"))
    other = make(job_spec(write_rows(tmp_path / "c.parquet", rows), tmp_path / "c", seed=1))

    seeds = {row["row_id"]: row["seed"] for row in forward.rows}

    assert seeds == {row["row_id"]: row["seed"] for row in backward.rows}
    assert seeds == {name: derived_seed(0, name) for name in "abc"}
    assert not set(seeds.values()) & {row["seed"] for row in other.rows}
    assert all(0 <= seed < 2**53 for seed in seeds.values())


def test_rows_without_ids_are_numbered_through_their_file(tmp_path: Path) -> None:
    """Across every batch in which they are read, and from shard to shard."""
    path = write_rows(tmp_path / "in.parquet", [{"prompt": str(i)} for i in range(130)])

    made = make(job_spec(path, tmp_path / "out", batching={"shard_rows": 100}), GreyEngine())

    assert [row["row_id"] for row in made.rows] == [f"in.parquet#{i}" for i in range(130)]


def test_a_row_whose_images_all_fail_fails_once(tmp_path: Path) -> None:
    """In the part, in the report, and in what a hopeless job is judged by."""

    class Failing(GreyEngine):
        def generate(self, rows: Sequence[OpenedRow], decoders: Executor) -> Iterator[Generated]:
            for sample in samples_of(rows):
                problem = RowError("nonfinite_image", f"image {sample.image_index}")
                yield Generated(sample=sample, pixels=None, nsfw=None, problem=problem)

    rows = [{"prompt": "x", "num_images_per_prompt": 3}, {"prompt": "y"}]

    made = make(job_spec(write_rows(tmp_path / "in.parquet", rows), tmp_path / "out"), Failing())

    assert [row["error_message"] for row in made.rows] == ["image 0", "image 0"]
    report = made.reports[0]
    assert (report.failed, report.unforeseen["nonfinite_image"].num_rows) == (2, 2)


def test_the_same_shard_gives_the_same_bytes(tmp_path: Path) -> None:
    """Whatever the threads and the order of shards; the parts of two runs can be compared by checksum."""
    path = write_rows(
        tmp_path / "in.parquet",
        [row | {"row_id": f"{row['row_id']}{i}"} for i in range(3) for row in MIXED],
    )
    batching = {"shard_rows": 5, "max_batch_rows": 4}
    first = make(job_spec(path, tmp_path / "a", batching=batching), num_threads=1)

    plan = plan_for(job_spec(path, tmp_path / "b", batching=batching))
    with worker_for(plan, num_threads=3) as worker, ThreadPoolExecutor(3) as callers:
        reports = list(callers.map(worker.run, reversed(list(plan.shards()))))

    assert read_output(plan, reports).parts == first.parts


def test_a_part_says_whose_it_is_and_nothing_of_when_or_where(tmp_path: Path) -> None:
    """The footer holds job, shard, counts, model revisions and versions; pages have checksums."""
    made = make(job_spec(write_rows(tmp_path / "in.parquet", MIXED[:4]), tmp_path / "out"))

    file = pq.ParquetFile(io.BytesIO(made.parts[0]))
    footer = {key.decode(): value.decode() for key, value in file.metadata.metadata.items()}

    assert footer["darkroom.job"] == made.plan.job.fingerprint
    assert footer["darkroom.shard"] == "train-00000-of-00001"
    assert json.loads(footer["darkroom.counts"]) == {"ok": 2, "filtered": 0, "failed": 2, "images": 2}
    assert json.loads(footer["darkroom.error_codes"]) == {"invalid_image": 1, "missing_prompt": 1}
    assert json.loads(footer["darkroom.models"]) == {"sd": made.plan.job.models["sd"].revision}
    assert "diffusers" in json.loads(footer["darkroom.versions"])
    assert json.loads(footer["huggingface"])["info"]["features"] == {"image": {"_type": "Image"}}
    assert file.schema_arrow.field("image").type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def test_a_flipped_bit_in_a_part_is_noticed(tmp_path: Path) -> None:
    """Page checksums are written: a reader that asks for them cannot be given wrong pixels."""
    made = make(job_spec(write_rows(tmp_path / "in.parquet", MIXED[:1]), tmp_path / "out"))
    image_at = made.parts[0].index(b"IDAT") + 40
    damaged = bytearray(made.parts[0])
    damaged[image_at] ^= 1

    with pytest.raises(OSError, match=r"CRC|checksum"):
        pq.ParquetFile(io.BytesIO(damaged), page_checksum_verification=True).read()


def test_kept_columns_come_through_as_they_are(tmp_path: Path) -> None:
    """Lists, structs and nulls included."""
    rows = [MIXED[0] | {"tags": ["x", "y"], "meta": {"k": 1}}, MIXED[1] | {"tags": None, "meta": None}]
    path = write_rows(tmp_path / "in.parquet", rows)

    made = make(job_spec(path, tmp_path / "out", input={"path": str(path), "keep": ["tags", "meta"]}))

    assert [(row["tags"], row["meta"]) for row in made.rows] == [(["x", "y"], {"k": 1}), (None, None)]


def test_whole_number_ids_stay_whole_numbers(tmp_path: Path) -> None:
    """The ids that come out are exactly those that went in."""
    rows = [{"row_id": 2**40 + i, "prompt": "x"} for i in range(2)]

    made = make(job_spec(write_rows(tmp_path / "in.parquet", rows), tmp_path / "out"))

    assert [row["row_id"] for row in made.rows] == [2**40, 2**40 + 1]


def test_rows_without_ids_are_named_after_file_and_number(tmp_path: Path) -> None:
    """So that a person finds them again."""
    made = make(job_spec(write_rows(tmp_path / "in.parquet", [{"prompt": "x"}] * 2), tmp_path / "out"))

    assert [row["row_id"] for row in made.rows] == ["in.parquet#0", "in.parquet#1"]


def test_the_resolved_parameters_stand_in_the_output(tmp_path: Path) -> None:
    """The row's value, else the route's, else the published default; and the scheduler that ran."""
    rows = [{"row_id": "a", "prompt": "x", "guidance_scale": 3.5}]

    row = make(job_spec(write_rows(tmp_path / "in.parquet", rows), tmp_path / "out")).rows[0]

    assert (row["guidance_scale"], row["num_inference_steps"], row["eta"]) == (3.5, 2, 0.0)
    assert row["scheduler"] == "PNDMScheduler"
    assert (row["width"], row["height"], row["model"], row["task"]) == (64, 64, "sd", "text2img")


def test_files_mode_writes_one_object_per_image(tmp_path: Path) -> None:
    """The part holds their paths below the output; the objects are the very bytes that the checksums tell."""
    output = {"path": str(tmp_path / "out"), "images": "files", "format": "webp"}
    spec = job_spec(write_rows(tmp_path / "in.parquet", MIXED[:4]), tmp_path / "out", output=output)

    made = make(spec)

    ok = [row for row in made.rows if row["status"] == "ok"]
    files = [tmp_path / "out" / row["image"]["path"] for row in ok]
    assert all(row["image"]["bytes"] is None for row in ok)
    assert [hashlib.sha256(file.read_bytes()).hexdigest() for file in files] == [
        row["image_sha256"] for row in ok
    ]
    assert sorted(files) == sorted((tmp_path / "out" / "images").rglob("*.webp"))
    with Image.open(files[0]) as image:
        assert image.size == (64, 64)


@pytest.mark.parametrize("image_format", ["png", "webp"])
def test_lossless_formats_lose_nothing(tmp_path: Path, image_format: str) -> None:
    """PNG and WebP hold the same pixels."""
    path = write_rows(tmp_path / "in.parquet", MIXED[:1])
    output = {"path": str(tmp_path / image_format), "format": image_format}

    made = make(job_spec(path, tmp_path / image_format, output=output))
    plain = make(job_spec(path, tmp_path / "plain"))

    assert image_of(made.rows[0]).tobytes() == image_of(plain.rows[0]).tobytes()


def test_row_images_may_be_bytes_or_paths_beside_the_input(tmp_path: Path) -> None:
    """A plain binary column, and text with a relative path, do what the struct does."""
    data = drawn_image()["bytes"]
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(data)
    row = {"row_id": 1, "prompt": "x", "task": "img2img", "seed": 3}

    sums = [
        make(
            job_spec(
                write_rows(tmp_path / f"{name}.parquet", [row | {"image": image}], {"image": arrow_type}),
                tmp_path / name,
            )
        ).rows[0]["image_sha256"]
        for name, image, arrow_type in (
            (
                "struct",
                {"bytes": data, "path": None},
                pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
            ),
            ("binary", data, pa.large_binary()),
            ("path", "pictures/a.png", pa.string()),
        )
    ]

    assert sums[0] is not None
    assert len(set(sums)) == 1


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("/etc/passwd", "disallowed_uri"),
        ("../outside.png", "disallowed_uri"),
        ("link.png", "disallowed_uri"),
        ("https://example.com/a.png", "image_url"),
        ("simplecache::file:///etc/passwd", "disallowed_uri"),
        ("missing.png", "unreadable_uri"),
    ],
)
def test_a_row_cannot_reach_outside_its_inputs_folder(tmp_path: Path, uri: str, code: str) -> None:
    """Rows are not trusted: a path that leaves the folder, a link, another scheme fail their row alone."""
    (tmp_path / "outside.png").write_bytes(drawn_image()["bytes"])
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    rows = [
        {"row_id": "bad", "prompt": "x", "task": "img2img", "image": uri},
        {"row_id": "good", "prompt": "x", "task": "text2img", "image": None},
    ]

    made = make(job_spec(write_rows(folder / "in.parquet", rows, {"image": pa.string()}), tmp_path / "out"))

    assert [(row["error_code"] or row["status"]) for row in made.rows] == [code, "ok"]


def test_an_image_with_too_many_pixels_is_refused_by_its_header(tmp_path: Path) -> None:
    """A few kilobytes can unfold to hundreds of megabytes; nothing is decoded."""
    bomb = encoded(Image.new("1", (10_000, 10_000)))
    row = {"row_id": 1, "prompt": "x", "task": "img2img", "image": bomb}

    made = make(job_spec(write_rows(tmp_path / "in.parquet", [row]), tmp_path / "out"))

    assert made.rows[0]["error_code"] == "image_too_large"


def test_a_model_is_given_no_more_pixels_than_the_spec_allows(tmp_path: Path) -> None:
    """Where the image decides the size of the work its header tells; a variation's is made small anyhow."""
    small, large = encoded(Image.new("L", (64, 64))), encoded(Image.new("L", (128, 64)))
    rows = [
        {"row_id": "small", "prompt": "x", "task": "img2img", "image": small},
        {"row_id": "large", "prompt": "x", "task": "img2img", "image": large},
        {"row_id": "varied", "prompt": "x", "task": "variation", "image": large},
    ]
    models = {"sd": {"checkpoint": "demo:sd"}, "variation": {"checkpoint": "demo:variation"}}
    routes = {name: {"model": model} for name, model in (("img2img", "sd"), ("variation", "variation"))}
    path = write_rows(tmp_path / "in.parquet", rows)

    made = make(
        job_spec(
            path,
            tmp_path / "out",
            input={"path": str(path), "max_pixels": 64 * 64},
            models=models,
            routes=routes | {"text2img": {"model": "sd", "num_inference_steps": 1}},
        )
    )

    assert {row["row_id"]: row["error_code"] or row["status"] for row in made.rows} == {
        "small": "ok",
        "large": "image_too_large",
        "varied": "ok",
    }
    said = made.row("large")["error_message"]
    assert said.startswith("`image` is 128x64, and img2img works on 128x64; input.max_pixels allows")


@pytest.mark.parametrize("image_format", ["GIF", "BMP", "TIFF"])
def test_other_formats_are_not_opened(tmp_path: Path, image_format: str) -> None:
    """Pillow knows dozens; darkroom opens PNG, JPEG and WebP."""
    row = {"row_id": 1, "prompt": "x", "task": "img2img", "image": drawn_image(image_format=image_format)}

    made = make(job_spec(write_rows(tmp_path / "in.parquet", [row]), tmp_path / "out"))

    assert made.rows[0]["error_code"] == "invalid_image"


def test_an_input_that_changed_after_the_plan_is_refused(tmp_path: Path) -> None:
    """A part must never mix two versions of the input."""
    path = write_rows(tmp_path / "in.parquet", MIXED[:1])
    plan = plan_for(job_spec(path, tmp_path / "out"))
    write_rows(path, [MIXED[0] | {"prompt": "another"}])

    with worker_for(plan) as worker, pytest.raises(RefusedError, match="changed after this job was planned"):
        worker.run(next(plan.shards()))


def rewrite(path: Path) -> None:
    """In place, as a copy does it."""
    data = path.read_bytes()
    path.write_bytes(data[:-8].replace(b"fox", b"cat") + data[-8:])


def cut(path: Path) -> None:
    """To nothing but its beginning."""
    with path.open("r+b") as file:
        file.truncate(100)


@pytest.mark.parametrize("change", [rewrite, cut, Path.unlink])
def test_an_input_that_changes_between_two_shards_stops_the_job(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """Though the worker has it open: of what it reads from then on nothing is committed."""
    rows = [{"row_id": i, "prompt": f"a fox {'x' * i}"} for i in range(200)]
    path = tmp_path / "in.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=100, compression="none")
    spec = job_spec(path, tmp_path / "out", batching={"shard_rows": 100})
    plan = plan_for(spec)
    first, second = plan.shards()

    with worker_for(plan, GreyEngine()) as worker:
        worker.run(first)
        change(path)
        with pytest.raises(RefusedError, match=r"in\.parquet changed after this job was planned"):
            worker.run(second)

    assert [part.name for part in (tmp_path / "out" / "data").iterdir()] == [f"{first.name}.parquet"]


def test_a_shard_that_is_there_already_is_not_written_again(tmp_path: Path) -> None:
    """The second attempt drops its own part and says so."""
    spec = job_spec(write_rows(tmp_path / "in.parquet", MIXED[:1]), tmp_path / "out")
    first, second = make(spec), make(spec)

    assert [report.committed for report in first.reports] == [True]
    assert [report.committed for report in second.reports] == [False]
    assert first.parts == second.parts


def test_rows_to_skip_are_recorded_and_not_made(tmp_path: Path) -> None:
    """In their place, with the reason; a part follows from its rows and which of them are skipped."""
    spec = job_spec(write_rows(tmp_path / "in.parquet", MIXED[:3]), tmp_path / "out")
    plan = plan_for(spec)
    shard = replace(next(plan.shards()), skip=(0, 1))
    engine = NotingEngine()

    with worker_for(plan, engine) as worker:
        report = worker.run(shard)
    made = read_output(plan, [report])

    assert engine.asked == [["c"]]
    assert [(row["row_id"], row["error_code"] or row["status"]) for row in made.rows] == [
        ("a", "worker_crash"),
        ("b", "missing_prompt"),
        ("c", "ok"),
    ]
    assert "takes its worker process down" in made.rows[0]["error_message"]
    assert (report.ok, report.failed, report.committed) == (1, 2, True)
    failures = {code: failed.num_rows for code, failed in report.failures.items()}
    assert failures == {"worker_crash": 1, "missing_prompt": 1}


@pytest.mark.parametrize("images", ["parquet", "files"])
def test_a_rehearsal_makes_its_rows_and_writes_nothing(tmp_path: Path, images: str) -> None:
    """No part and no object; the whole shard is made afterwards as if nothing had been."""
    rows = [{"row_id": name, "prompt": "x"} for name in "abcdef"]
    output = {"path": str(tmp_path / "out"), "images": images}
    plan = plan_for(job_spec(write_rows(tmp_path / "in.parquet", rows), tmp_path / "out", output=output))
    shard = next(plan.shards())
    engine = NotingEngine()

    with worker_for(plan, engine) as worker:
        rehearsed = worker.run(replace(shard, rehearse=(1, 4), skip=(2,)))
        files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
        unfinished = worker.progress().unfinished
        made = worker.run(shard)

    assert engine.asked == [["b", "d"], [*"abcdef"]]
    assert (rehearsed.committed, rehearsed.ok, files, unfinished) == (False, 2, [], {})
    assert (made.committed, made.ok) == (True, 6)


def test_a_worker_at_work_can_be_seen_to_move(tmp_path: Path) -> None:
    """Rows read, batches run: the driver kills a worker of which nothing moves."""
    spec = job_spec(write_rows(tmp_path / "in.parquet", MIXED[:1]), tmp_path / "out")
    plan = plan_for(spec)
    engine = DiffusersEngine(model_cache(spec), spec)
    seen: list[int] = []

    with worker_for(plan, engine) as worker:
        unet = engine._models.get("sd").components["unet"]
        unet.register_forward_pre_hook(lambda *_: seen.append(worker.progress().heartbeats))
        before = worker.progress().heartbeats
        worker.run(next(plan.shards()))

    assert before < seen[0] < seen[1] < worker.progress().heartbeats


def test_a_worker_tells_its_phase_and_its_denoising_steps(tmp_path: Path) -> None:
    """Two rows of three steps each are six steps, whichever of them go through the UNet together."""
    rows = [
        {"row_id": i, "prompt": f"p{i}", "num_inference_steps": 3, "scheduler": "DDIMScheduler"}
        for i in (0, 1)
    ]
    spec = job_spec(
        write_rows(tmp_path / "in.parquet", rows), tmp_path / "out", models={"sd": {"checkpoint": "demo:sd"}}
    )
    plan = plan_for(spec)
    engine = DiffusersEngine(model_cache(spec), spec)
    seen: list[tuple[str, int]] = []

    def look(*_: object) -> None:
        progress = worker.progress()
        seen.append((progress.phase, progress.num_steps))

    with worker_for(plan, engine) as worker:
        components = engine._models.get("sd").components
        for name in ("text_encoder", "unet"):
            components[name].register_forward_pre_hook(look)
        worker.run(next(plan.shards()))
        after = worker.progress()

    assert {phase for phase, _ in seen} >= {"encoding prompts", "denoising"}
    assert next(steps for phase, steps in seen if phase == "encoding prompts") == 0
    assert (after.phase, after.num_steps) == ("", 6)


def test_shards_of_many_row_groups_and_models_hold_the_right_rows(tmp_path: Path) -> None:
    """Rows of two models interleave over small row groups; each shard finds its own, in any order."""
    rows = [
        {"row_id": i, "prompt": f"p{i}", "model": ["sd", "other"][i % 3 == 0], "num_inference_steps": 1}
        for i in range(40)
    ]
    path = tmp_path / "in.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    models = {name: {"checkpoint": "demo:sd"} for name in ("sd", "other")}
    spec = job_spec(path, tmp_path / "out", models=models, batching={"shard_rows": 6, "max_batch_rows": 16})

    plan = plan_for(spec)
    with worker_for(plan) as worker:
        reports = [worker.run(shard) for shard in reversed(list(plan.shards()))]
    made = read_output(plan, reports)

    expected = [row for model in ("sd", "other") for row in rows if row["model"] == model]
    assert [(row["row_id"], row["prompt"], row["model"]) for row in made.rows] == [
        (row["row_id"], row["prompt"], row["model"]) for row in expected
    ]


class NotingEngine:
    """Makes grey images, and notes of which rows."""

    num_loads = 0
    heartbeats = 0
    phase = ""
    num_steps = 0
    use = DeviceUse()
    models_loaded: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.asked: list[list[object]] = []

    def generate(self, rows: Sequence[OpenedRow], decoders: Executor) -> Iterator[Generated]:
        self.asked.append([opened.row.row_id for opened in rows])
        for opened in rows:
            sample = Sample(opened=opened, image_index=0)
            yield Generated(sample=sample, pixels=np.full((8, 8, 3), 128, np.uint8), nsfw=None)


class WaitingEngine:
    """Makes grey images, and lets a test look at what else goes on meanwhile."""

    num_loads = 0
    heartbeats = 0
    phase = ""
    num_steps = 0
    use = DeviceUse()
    models_loaded: tuple[str, ...] = ()

    def __init__(self, before: Callable[[], None]) -> None:
        self._before = before

    def generate(self, rows: Sequence[OpenedRow], decoders: Executor) -> Iterator[Generated]:
        self._before()
        for opened in rows:
            sample = Sample(opened=opened, image_index=0)
            yield Generated(sample=sample, pixels=np.full((8, 8, 3), 128, np.uint8), nsfw=None)


def test_reading_and_writing_go_on_while_the_device_works(tmp_path: Path) -> None:
    """While a shard is generated the next is read; while it is written the next is generated."""
    for name in "ab":
        write_rows(tmp_path / f"{name}.parquet", [{"row_id": name, "prompt": "x"}])
    spec = job_spec(tmp_path / "a.parquet", tmp_path / "out", input={"path": str(tmp_path / "*.parquet")})
    second_read, second_generated = Event(), Event()
    generated: list[bool] = []
    written: list[bool] = []

    def generating() -> None:
        if generated:
            second_generated.set()
        generated.append(second_read.wait(timeout=20))

    class OutputStorage(LocalStorage):
        def create(self, uri: str, data: Buffer, metadata: Mapping[str, str]) -> bool:
            written.append(second_generated.wait(timeout=20))
            return super().create(uri, data, metadata)

    class Inputs(Stores):
        def of(self, uri: str) -> Storage:
            return Input(temp_dir=str(tmp_path))

    class Input(LocalStorage):
        def open(self, uri: str) -> BinaryIO:
            if uri.endswith("b.parquet"):
                second_read.set()
            return super().open(uri)

    plan = plan_for(spec)
    worker = Worker(
        plan.job,
        engine=WaitingEngine(generating),
        stores=Inputs(),
        output=Output(
            OutputStorage(temp_dir=str(tmp_path / "out" / "_darkroom" / "tmp")), str(tmp_path / "out")
        ),
        num_threads=1,
    )
    with worker, ThreadPoolExecutor(2) as callers:
        list(callers.map(worker.run, plan.shards()))

    assert generated == [True, True]
    assert written == [True, True]


def test_a_worker_that_is_to_leave_finishes_the_shard_on_the_device_alone(tmp_path: Path) -> None:
    """The next one it does not begin, and gives back."""
    path = write_rows(tmp_path / "in.parquet", [{"prompt": str(i)} for i in range(4)])
    plan = plan_for(job_spec(path, tmp_path / "out", batching={"shard_rows": 2}))
    first, second = plan.shards()

    with worker_for(plan, WaitingEngine(lambda: worker.leave())) as worker:
        report = worker.run(first)
        with pytest.raises(ReclaimedError, match="train-00001-of-00002 is left to another worker"):
            worker.run(second)

        assert report.committed
        assert worker.progress().leaving

"""IP-Adapters and image encoders in a worker's memory, and what their rows ask a device for."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPVisionModelWithProjection

from actors.engine.adapters.image_encoders import ImageEncoder
from actors.engine.adapters.ip_adapters import IpAdapters
from actors.engine.pipelines.loading import LoadOptions
from actors.engine.pipelines.model_cache import ModelCache
from benchmarks.parity.drawn_images import drawn_image, image_of
from demo.random_ip_adapters import save_image_encoder, save_ip_adapter
from demo.random_loras import plain_pipeline
from schemas.columns.output_columns import IMAGE_TYPE
from schemas.errors import SpecError
from schemas.spec.job_spec import JobSpec
from schemas.systems.image_prompts import ImagePrompt
from tests.support.checkpoints import demo
from tests.support.in_process import Record, job_spec, plan_for, write_rows
from tests.support.pretended_gpu.audited_run import audit, watch
from tests.support.pretended_gpu.device_events import Kind
from tests.support.pretended_gpu.device_tensor import DEVICE
from tests.support.pretended_gpu.pretended_cuda import pretended_gpu
from tests.support.pretended_gpu.pretended_jobs import FEW_STEPS, SIDE, twice
from tests.support.pretended_gpu.traffic import traffic

CPU = torch.device("cpu")
PICTURE = image_of({"image": drawn_image()})


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    save_image_encoder(folder / "image_encoder", seed=1)
    for seed, form in enumerate(("plain", "plus")):
        save_ip_adapter(folder / f"{form}.safetensors", demo("sd"), seed=seed, form=form)  # type: ignore[arg-type]
    (folder / "faulty.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return folder


def test_adapters_that_no_call_uses_make_room(published: Path) -> None:
    """Those in use stay, also beyond the room; a file that cannot be loaded is named."""
    encoder = ImageEncoder(CLIPVisionModelWithProjection.from_pretrained(published / "image_encoder"))
    size_bytes = (published / "plain.safetensors").stat().st_size
    files = dict.fromkeys(("one", "two", "three"), "plain") | {"faulty": "faulty"}
    adapters = IpAdapters(
        plain_pipeline(demo("sd")),
        lambda name: published / f"{files[name]}.safetensors",
        int(1.5 * size_bytes),
    )

    def in_use(name: str) -> Any:
        prompt = ImagePrompt(ip_adapter=name, ip_adapter_scale=1.0)
        return adapters.in_batches(object(), prompt, [PICTURE], encoder)

    with in_use("one"), in_use("two"):
        together = adapters.names
    with in_use("three"):
        alone = adapters.names

    assert together == ("one", "two")
    assert alone == ("three",)
    with pytest.raises(SpecError, match=r"the IP-Adapter `faulty`: .*faulty.safetensors cannot be loaded"):
        in_use("faulty").__enter__()


def test_a_call_leaves_the_unet_as_it_was(published: Path) -> None:
    """Else diffusers would ask the next row for a picture, whether or not it has one."""
    encoder = ImageEncoder(CLIPVisionModelWithProjection.from_pretrained(published / "image_encoder"))
    pipeline = plain_pipeline(demo("sd"))
    adapters = IpAdapters(pipeline, lambda _: published / "plain.safetensors", 1 << 30)

    with adapters.plain(pipeline, ImagePrompt(ip_adapter="one", ip_adapter_scale=1.0), [PICTURE], encoder):
        during = pipeline.unet.config.encoder_hid_dim_type

    assert during == "ip_image_proj"
    assert pipeline.unet.config.encoder_hid_dim_type is None
    assert pipeline.unet.encoder_hid_proj is None


def spec_of(folder: Path, published: Path, rows: list[Record], **model: Any) -> JobSpec:
    path = write_rows(folder / "rows.parquet", rows, {"ip_adapter_image": IMAGE_TYPE})
    adapters = {form: str(published / f"{form}.safetensors") for form in ("plain", "plus")}
    models = {name: {"checkpoint": "demo:sd", "ip_adapters": adapters, **model} for name in ("sd", "other")}
    return job_spec(path, folder / "out", models=models)


def test_models_and_adapters_share_an_image_encoder(published: Path, tmp_path: Path) -> None:
    """By its content. It counts as a weight of each, and is loaded only for rows that need it."""
    spec = spec_of(tmp_path, published, [{"prompt": "a fox"}])
    cards = plan_for(spec).job.ip_adapters
    models = ModelCache(spec.models, LoadOptions(device=CPU), 10**10, ip_adapters=cards)
    idle_bytes = models.get("sd").weight_bytes

    one, other = (models.get(name, (), {"plain", "plus"}) for name in ("sd", "other"))

    (encoder,) = one.encoders.values()
    assert [*other.encoders.values()] == [encoder]
    assert one.weight_bytes == idle_bytes + sum(
        each.nbytes for each in (*encoder.module.parameters(), *encoder.module.buffers())
    )


def test_image_encoders_of_one_model_have_names_of_their_own(published: Path, tmp_path: Path) -> None:
    """Though another model has them for adapters of other names: calls of one name are merged."""
    second = save_image_encoder(tmp_path / "second", seed=2)
    files = {form: str(published / f"{form}.safetensors") for form in ("plain", "plus")}
    with_second = {form: {"path": file, "image_encoder": str(second)} for form, file in files.items()}
    adapters = {
        "sd": {"one": files["plain"], "two": with_second["plus"]},
        "other": {"one": with_second["plain"], "two": files["plus"]},
    }
    models = {name: {"checkpoint": "demo:sd", "ip_adapters": each} for name, each in adapters.items()}
    path = write_rows(tmp_path / "rows.parquet", [{"prompt": "a fox"}])
    spec = job_spec(path, tmp_path / "out", models=models)
    cards = plan_for(spec).job.ip_adapters
    cache = ModelCache(spec.models, LoadOptions(device=CPU), 10**10, ip_adapters=cards)

    points = [
        {point.name: point.module for point in cache.get(name, (), {"one", "two"}).merge_points()}
        for name in models
    ]

    names = ("image_encoder.one", "image_encoder.two")
    assert [points[0][name] for name in names] == [points[1][name] for name in reversed(names)]
    assert points[0][names[0]] is not points[0][names[1]]


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")
def test_a_row_with_a_picture_waits_for_nothing(published: Path, tmp_path: Path) -> None:
    """It is sent its picture once, and nothing at any step."""
    row: Record = {
        "task": "text2img",
        "prompt": "a fox",
        "seed": 7,
        "scheduler": "DDIMScheduler",
        "height": SIDE,
        "width": SIDE,
        "ip_adapter_image": drawn_image(),
    }
    rows = [
        *twice("plain", {**row, "ip_adapter": None}, FEW_STEPS),
        *twice("shown", {**row, "ip_adapter": "plain"}, FEW_STEPS),
    ]
    spec = spec_of(tmp_path, published, rows, dtype="float16")
    cards = plan_for(spec).job.ip_adapters

    with pretended_gpu() as gpu:
        cache = ModelCache(spec.models, LoadOptions(device=DEVICE), 10**12, ip_adapters=cards)
        for point in cache.get("sd", (), {"plain"}).merge_points():
            watch(point.name, point.module, gpu.log)
        audited = audit(spec, cache, gpu)

    plain, shown = (traffic(audited, name, FEW_STEPS) for name in ("plain", "shown"))
    assert shown.row_copies == plain.row_copies + 1
    assert (shown.step_waits, shown.step_copies, shown.row_waits, shown.image_waits) == (0, 0, 0, 0)
    assert shown.step_kernels == plain.step_kernels
    merged = Counter(
        event.kind for event in audited.events if event.module == "unet" and event.row_id is None
    )
    assert merged[Kind.WAIT] == 0

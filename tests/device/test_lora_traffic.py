"""Rows with LoRAs on a device: no host tensor meets them, and the denoising loop waits for nothing."""

import json
from pathlib import Path

import pytest

from actors.engine.pipelines.loading import LoadOptions
from actors.engine.pipelines.model_cache import ModelCache
from demo.random_loras import ATTENTION, CONVOLUTIONS, TEXT, save_lora
from tests.support.checkpoints import sd_checkpoint
from tests.support.in_process import job_spec, plan_for, write_rows
from tests.support.pretended_gpu.audited_run import audit, watch_modules
from tests.support.pretended_gpu.device_events import Kind
from tests.support.pretended_gpu.device_tensor import DEVICE
from tests.support.pretended_gpu.pretended_cuda import pretended_gpu

WEIGHTS = ({}, {"ink": 0.5}, {"chalk": 0.8}, {"chalk": -0.5, "ink": 0.7}, {"chalk": 1.0, "ink": 0.1}, {})


@pytest.mark.parametrize("exact", [False, True], ids=["merged", "exact"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_loras_are_on_the_device_and_wait_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, exact: bool
) -> None:
    """The scales of a batch's rows are sent once, from pinned memory."""
    # Only one thread has the pretended GPU, and transformers 5.23 moves weights in others.
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")
    loras = {
        "ink": str(save_lora(tmp_path / "ink.safetensors", sd_checkpoint(), seed=1, text=TEXT)),
        "chalk": str(
            save_lora(
                tmp_path / "chalk.safetensors",
                sd_checkpoint(),
                seed=2,
                rank=2,
                layers=(*ATTENTION, *CONVOLUTIONS),
            )
        ),
    }
    rows = [
        {"row_id": number, "prompt": f"{number} foxes", "loras": json.dumps(weights)}
        for number, weights in enumerate(WEIGHTS)
    ]
    spec = job_spec(
        write_rows(tmp_path / "rows.parquet", rows),
        tmp_path / "out",
        models={"sd": {"checkpoint": "demo:sd", "dtype": dtype, "loras": loras}},
        routes={"text2img": {"model": "sd", "num_inference_steps": 4}},
        batching={"exact": exact},
        safety={"checker": "off"},
    )
    job = plan_for(spec).job
    with pretended_gpu() as gpu:
        models = ModelCache(job.checkpoints, LoadOptions.of(spec, DEVICE), 10**12, job.loras)
        watch_modules(models, ["sd"], gpu)
        audited = audit(spec, models, gpu)

    assert {row["row_id"]: row["error_message"] for row in audited.made.rows if row["error_code"]} == {}
    in_unet = [event.kind for event in audited.events if event.module == "unet"]
    assert exact or (in_unet and Kind.WAIT not in in_unet)

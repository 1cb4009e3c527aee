"""What rows with ControlNets ask a device for."""

from collections import Counter
from pathlib import Path

import pytest

from actors.engine.pipelines.loading import LoadOptions
from actors.engine.pipelines.model_cache import ModelCache
from demo.random_control_nets import save_control_net
from schemas.columns.output_columns import IMAGE_TYPE
from tests.support.checkpoints import demo
from tests.support.in_process import Record, drawn_image, job_spec, plan_for, write_rows
from tests.support.pretended_gpu.audited_run import audit, watch
from tests.support.pretended_gpu.device_events import Kind
from tests.support.pretended_gpu.device_tensor import DEVICE
from tests.support.pretended_gpu.pretended_cuda import pretended_gpu
from tests.support.pretended_gpu.pretended_jobs import FEW_STEPS, SIDE, twice
from tests.support.pretended_gpu.traffic import traffic


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")
def test_a_row_with_a_control_net_waits_for_nothing(tmp_path: Path) -> None:
    """It is sent its control image, and at each step nothing; docs/batching.md says so."""
    net = save_control_net(tmp_path / "net", demo("sd"), seed=1)
    row: Record = {
        "task": "text2img",
        "prompt": "a fox",
        "seed": 7,
        "scheduler": "DDIMScheduler",
        "height": SIDE,
        "width": SIDE,
        "control_image": drawn_image((SIDE, SIDE)),
    }
    rows = [
        *twice("plain", {**row, "controlnet": None}, FEW_STEPS),
        *twice("guided", {**row, "controlnet": "canny"}, FEW_STEPS),
    ]
    path = write_rows(tmp_path / "rows.parquet", rows, {"control_image": IMAGE_TYPE})
    models = {"sd": {"checkpoint": "demo:sd", "dtype": "float16", "controlnets": {"canny": str(net)}}}
    spec = job_spec(path, tmp_path / "out", models=models)
    nets = plan_for(spec).job.controlnets

    with pretended_gpu() as gpu:
        options = LoadOptions(device=DEVICE, channels_last=True)
        cache = ModelCache(spec.models, options, 10**12, controlnets=nets)
        for point in cache.get("sd", {"canny"}).merge_points():
            watch(point.name, point.module, gpu.log)
        audited = audit(spec, cache, gpu)

    plain, guided = (traffic(audited, name, FEW_STEPS) for name in ("plain", "guided"))
    assert guided.row_copies == plain.row_copies + 1
    assert (guided.step_waits, guided.step_copies, guided.row_waits, guided.image_waits) == (0, 0, 0, 0)
    assert guided.step_kernels == plain.step_kernels
    merged = Counter(
        event.kind for event in audited.events if event.module == "controlnet.canny" and event.row_id is None
    )
    assert (merged[Kind.WAIT], merged[Kind.COPY]) == (0, 2 * max(FEW_STEPS))

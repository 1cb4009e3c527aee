"""The engine on a device: nothing of the host meets it, and it waits as often as docs/batching.md says."""

from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
import torch

from tests.support.in_process import Record
from tests.support.pretended_gpu.audited_run import Audited, audit, models_on_device
from tests.support.pretended_gpu.device_events import Kind
from tests.support.pretended_gpu.pretended_cuda import pretended_gpu
from tests.support.pretended_gpu.pretended_jobs import FEATURES, scheduler_rows, spec_on_device, system_rows
from tests.support.pretended_gpu.traffic import (
    FEATURE_HEAD,
    SCHEDULER_HEAD,
    SYSTEM_HEAD,
    feature_cells,
    scheduler_cells,
    system_cells,
    table_rows,
)
from tests.support.running import ROOT

PAGE = (ROOT / "docs" / "batching.md").read_text()
EXACT = {"batching": {"exact": True}}
JOBS: Mapping[str, Mapping[str, tuple[Sequence[Record], Record]]] = {
    "float16": {
        "systems": (system_rows(), {}),
        "schedulers": (scheduler_rows(), {}),
        "exact systems": (system_rows((2,)), EXACT),
        "exact schedulers": ([row for row in scheduler_rows((2,)) if row["task"] == "text2img"], EXACT),
        **FEATURES,
    },
    "bfloat16": {
        "systems": (system_rows((2,)), {}),
        "schedulers": (scheduler_rows((4,)), {}),
        "exact systems": (system_rows((2,)), EXACT),
    },
}
"""The jobs of each dtype: their rows, and what their spec says beside models and routes."""
CASES = [(dtype, job) for dtype, jobs in JOBS.items() for job in jobs]

pytestmark = [
    # What Safe says of every call without guidance, and diffusers 0.42.1 of itself.
    pytest.mark.filterwarnings("ignore:Safety checker disabled:UserWarning"),
    pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]

Audits = Mapping[tuple[str, str], Audited]


@pytest.fixture(scope="module")
def audits(tmp_path_factory: pytest.TempPathFactory) -> Audits:
    """All jobs, run once: their checkpoints are loaded once for each dtype."""
    num_threads = torch.get_num_threads()
    # Such small tensors are done before a second thread has begun.
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("device")
    done: dict[tuple[str, str], Audited] = {}
    for dtype, jobs in JOBS.items():
        with pretended_gpu() as gpu:
            models = models_on_device(dtype, gpu)
            for number, (job, (rows, changes)) in enumerate(jobs.items()):
                spec = spec_on_device(folder / f"{dtype}-{number}", dtype, rows, **changes)
                done[dtype, job] = audit(spec, models, gpu)
    torch.set_num_threads(num_threads)
    return done


@pytest.mark.parametrize(("dtype", "job"), CASES)
def test_no_tensor_of_the_host_meets_one_of_the_device(audits: Audits, dtype: str, job: str) -> None:
    """Every system, scheduler and feature gives its images, as it would not with a mixture."""
    rows = audits[dtype, job].made.rows

    assert {row["row_id"]: row["error_message"] for row in rows if row["error_code"]} == {}


def test_the_traffic_of_each_system_is_the_documented_one(audits: Audits) -> None:
    """`python -m tests.support.pretended_gpu` prints the tables as they are."""
    assert system_cells(audits["float16", "systems"]) == table_rows(PAGE, SYSTEM_HEAD)


def test_the_traffic_of_each_scheduler_is_the_documented_one(audits: Audits) -> None:
    """For text2img, img2img and inpainting with a UNet of 4 channels."""
    assert scheduler_cells(audits["float16", "schedulers"]) == table_rows(PAGE, SCHEDULER_HEAD)


def test_the_traffic_of_each_feature_is_the_documented_one(audits: Audits) -> None:
    """Of texts, chains and the safety checker, outside of the denoising loop."""
    counted = {name: feature_cells(audits["float16", name]) for name in FEATURES}

    assert counted == table_rows(PAGE, FEATURE_HEAD)


@pytest.mark.parametrize("job", ["systems", "schedulers"])
def test_bfloat16_waits_as_often_as_float16(audits: Audits, job: str) -> None:
    """So one table tells both."""
    rows = {row["row_id"] for row in audits["bfloat16", job].made.rows}
    half, brain = (_waits_by_row(audits[dtype, job], rows) for dtype in JOBS)

    assert rows
    assert half == brain


def _waits_by_row(audited: Audited, rows: set[str]) -> Counter[str | None]:
    """The waits of these rows' own calls, outside of the modules."""
    return Counter(
        event.row_id
        for event in audited.events
        if event.row_id in rows and event.module is None and event.kind is Kind.WAIT
    )


@pytest.mark.parametrize(("dtype", "job"), [case for case in CASES if "exact" not in case[1]])
def test_a_unet_batch_is_copied_its_timesteps_and_waits_for_nothing(
    audits: Audits, dtype: str, job: str
) -> None:
    """One copy from pinned memory, however many rows the batch has."""
    audited = audits[dtype, job]
    merged = [event for event in audited.events if event.module == "unet" and event.row_id is None]
    kinds = Counter(event.kind for event in merged)

    assert audited.unet_batches > 0
    assert kinds[Kind.WAIT] == 0
    assert kinds[Kind.COPY] == audited.unet_batches


def test_an_image_is_waited_for_once(audits: Audits) -> None:
    """While the device has other work: the engine asks for it when 8 calls' images are on their way."""
    audited = audits["float16", "schedulers"]
    arrivals = [event for event in audited.events if event.operation == "Event.synchronize"]

    assert len(arrivals) == len(audited.made.rows)
    assert {event.row_id for event in arrivals} == {None}

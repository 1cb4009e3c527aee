"""What the plan says of ControlNets that cannot guide, and of rows that they cannot guide."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from actors.checkpoints.adapters.control_net_files import net_on_this_machine
from demo.random_control_nets import save_control_net
from jobs.planning.plan import make_plan
from jobs.planning.plan_text import print_plan
from jobs.survey.survey import make_survey
from schemas.columns.output_columns import IMAGE_TYPE
from schemas.errors import SpecError
from schemas.spec.job_spec import JobSpec
from schemas.systems.control_parameters import CONTROL_IMAGES, controls_of, settled_controls
from tests.support.checkpoints import demo
from tests.support.in_process import Record, drawn_image, job_spec, plan_for, write_rows

IMAGE = drawn_image()


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ControlNet for the small Stable Diffusion."""
    return save_control_net(tmp_path_factory.mktemp("nets") / "canny", demo("sd"), seed=1)


def spec_of(folder: Path, rows: list[Record], nets: Record, **route: Any) -> JobSpec:
    path = write_rows(folder / "rows.parquet", rows, dict.fromkeys(CONTROL_IMAGES[:2], IMAGE_TYPE))
    models = {
        "sd": {"checkpoint": "demo:sd", "controlnets": nets},
        "bare": {"checkpoint": "demo:sd"},
    }
    tasks = ("text2img", "img2img", "inpaint")
    routes = {task: {"model": "sd", "num_inference_steps": 2, **route} for task in tasks}
    return job_spec(path, folder / "out", models=models, routes=routes, errors={"max_rate": 1.0})


def refusals(folder: Path, rows: list[Record], nets: Record, **route: Any) -> list[str]:
    """The code and message of each row that the plan refuses, in the rows' order."""
    numbered = [{"row_id": f"row-{number}", "prompt": "a fox", **row} for number, row in enumerate(rows)]
    _, findings = make_plan(make_survey(spec_of(folder, numbered, nets, **route)))
    return [str(row.problem) for row in sorted(findings.bad_rows, key=lambda row: row.row)]


def copy_with(net: Path, folder: Path, **config: Any) -> Path:
    """A copy of the ControlNet, with these changes of its configuration."""
    folder.mkdir()
    for file in net.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | config))
    return folder


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"controlnet": "cany"}, "unknown_controlnet: model `sd` has no ControlNet `cany`"),
        ({"controlnet": "/etc/net"}, "unknown_controlnet: "),
        ({"controlnet": "canny", "model": "bare"}, "unknown_controlnet: model `bare` has no ControlNet"),
        (
            {"controlnet": "canny", "control_image": None},
            "missing_control_image: the ControlNet `canny` needs",
        ),
        (
            {"controlnet": "canny", "control_guidance_start": 0.5, "control_guidance_end": 0.5},
            "invalid_parameter: control_guidance_start is 0.5; it must be below control_guidance_end, 0.5",
        ),
        (
            {"controlnet": "canny", "controlnet_conditioning_scale": 11.0},
            "invalid_parameter: controlnet_conditioning_scale is 11.0; it must be a number from 0 to 10",
        ),
        (
            {"controlnet": "canny", "guidance_rescale": 0.5},
            "invalid_parameter: diffusers has no guidance_rescale for text2img with a ControlNet",
        ),
        (
            {"task": "inpaint", "padding_mask_crop": 8}
            | {"controls": '[{"controlnet":"canny"},{"controlnet":"canny"}]'},
            "invalid_parameter: diffusers has no padding_mask_crop for several ControlNets",
        ),
        (
            {"controls": "canny"},
            'invalid_parameter: controls is canny: it is not a JSON list such as [{"controlnet": "canny"}]',
        ),
        (
            {"controls": '[{"controlnet":"canny","controlnet":"depth"}]'},
            "a name appears in it twice",
        ),
        (
            {"controls": '[{"controlnet":"canny","scale":1}]'},
            "`scale` is not a key of an entry (did you mean `controlnet_conditioning_scale`?)",
        ),
        ({"controls": '[{"controlnet":"cany"}]'}, "unknown_controlnet: "),
        (
            {"controls": '[{"controlnet":"canny","control_guidance_end":0}]'},
            "invalid_parameter: control_guidance_start is 0; it must be below control_guidance_end, 0",
        ),
        (
            {"controls": '[{"controlnet":"canny"},{"controlnet":"canny"}]', "controlnet": "canny"},
            "invalid_parameter: the row has both `controlnet` and `controls`",
        ),
        (
            {
                "controls": '[{"controlnet":"canny"},{"controlnet":"canny"}]',
                "control_image": None,
                "control_image_2": IMAGE,
            },
            "missing_control_image: the ControlNet `canny` needs `control_image`",
        ),
    ],
)
def test_a_row_that_cannot_be_guided_is_refused_by_the_plan(
    net: Path, tmp_path: Path, row: Record, says: str
) -> None:
    """The rows beside it are not; values that mean nothing without a ControlNet are not looked at."""
    plain = {
        "model": "sd",
        "control_image": IMAGE,
        "control_image_2": None,
        "controlnet": None,
        "controls": None,
        "task": "text2img",
        "image": IMAGE,
        "mask_image": IMAGE,
        "padding_mask_crop": None,
        "guidance_rescale": None,
        "control_guidance_start": None,
        "control_guidance_end": None,
        "controlnet_conditioning_scale": None,
    }
    others = [
        {"controlnet": "canny"},
        {"guidance_rescale": 0.5, "control_guidance_start": 1.0},
        {"controlnet": "", "control_image": None},
        {"controls": '[{"controlnet":"canny"},{"controlnet":"canny"}]'},
        {"controls": '[{"controlnet":"canny"}]', "controlnet": "canny"},
        {"controlnet": "canny", "task": "inpaint", "padding_mask_crop": 8},
    ]

    found = refusals(tmp_path, [plain | each for each in (*others, row)], {"canny": str(net)})

    assert len(found) == 1
    assert says in found[0]


def test_the_ways_out_of_a_routes_control_are_named(net: Path, tmp_path: Path) -> None:
    """A row may go to a model that lacks its route's ControlNet; an empty text is none."""
    rows = [
        {"model": "bare", "controlnet": None, "control_image": IMAGE},
        {"model": "bare", "controlnet": "", "control_image": None},
    ]

    found = refusals(tmp_path, rows, {"canny": str(net)}, controlnet="canny")

    assert len(found) == 1
    assert "They come from the route; set controlnet to an empty text for none" in found[0]


@pytest.mark.parametrize(
    ("route", "says"),
    [
        ({"controlnet": "cany"}, "routes.text2img.controlnet: model `sd` has no ControlNet `cany`"),
        ({"controls": [{"controlnet": "cany"}]}, "routes.text2img.controls: model `sd` has no ControlNet"),
        ({"controls": [{"controlnet": "canny", "end": 1}]}, "`end` is not a key of an entry"),
        ({"controls": [{"controlnet": "canny"}], "controlnet": "canny"}, "exclude each other"),
        ({"control_guidance_start": 0.5, "control_guidance_end": 0.5}, "must be below control_guidance_end"),
        (
            {"controls": [{"controlnet": "canny"}, {"controlnet": "canny", "control_guidance_end": 0.1}]}
            | {"control_guidance_start": 0.5},
            "controls.1: control_guidance_start, 0.5, must be below control_guidance_end, 0.1",
        ),
        (
            {"controls": [{"controlnet": "canny", "control_guidance_start": 2.0}]},
            "control_guidance_start is 2.0; it must be a number from 0 to 1",
        ),
        ({"controls": [{"controlnet": "canny", "controlnet_conditioning_scale": "x"}]}, "is x; it must be a"),
    ],
)
def test_a_route_that_cannot_guide_is_refused(net: Path, tmp_path: Path, route: Record, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        spec_of(tmp_path, [{"prompt": "a fox"}], {"canny": str(net)}, **route)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "is a UNet2DConditionModel, not a ControlNetModel"),
        ({"cross_attention_dim": 2048}, "it was made for XL: its cross_attention_dim is 2048, the"),
        ({"block_out_channels": [32, 64, 64]}, "its block_out_channels is"),
        (
            {"addition_embed_type": "text_time"},
            "its addition_embed_type is 'text_time', the checkpoint's None",
        ),
        ({"in_channels": 9}, "its in_channels is 9, and the checkpoint's latents have 4 channels"),
        (
            {"conditioning_channels": 1},
            "its conditioning_channels is 1, and the images of rows have 3 channels",
        ),
        ({"conditioning_embedding_out_channels": [16, 32]}, "2 times smaller, and the VAE 8 times"),
    ],
)
def test_a_control_net_of_another_family_is_refused_with_both_values(
    net: Path, tmp_path: Path, config: Record, says: str
) -> None:
    wrong = copy_with(net, tmp_path / "wrong", **config)

    with pytest.raises(SpecError) as error:
        plan_for(spec_of(tmp_path, [{"prompt": "a fox"}], {"canny": str(net), "wrong": str(wrong)}))
    assert str(error.value).startswith("models.sd.controlnets.wrong: ")
    assert says in str(error.value)


@pytest.mark.parametrize("fault", ["pickle", "cut", "int8", "file", "pth", "missing", "family"])
def test_files_that_cannot_be_used_are_refused(net: Path, tmp_path: Path, fault: str) -> None:
    """Before anything of them is loaded."""
    wrong = copy_with(net, tmp_path / "wrong")
    weights = wrong / "diffusion_pytorch_model.safetensors"
    says = {
        "pickle": "has no diffusion_pytorch_model.safetensors",
        "cut": "it is cut off or damaged",
        "int8": "its tensor conv_in.weight has the type I8; weights must be floating-point numbers",
        "file": r"is a file; name a folder .* `ControlNetModel\.from_single_file\(FILE\)",
        "pth": "canny.pth is a file; name a folder",
        "missing": "the folder .* does not exist",
        "family": "has no pipeline with ControlNets for a checkpoint of upscale",
    }
    if fault == "pickle":
        weights.rename(wrong / "diffusion_pytorch_model.bin")
    elif fault == "cut":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif fault == "int8":
        save_file({"conv_in.weight": np.ones((4, 4), np.int8)}, weights)
    path = {"file": weights, "pth": "owner/nets/canny.pth", "missing": tmp_path / "none"}.get(fault, wrong)
    spec = spec_of(tmp_path, [{"prompt": "a fox"}], {"wrong": str(path)})
    if fault == "family":
        upscaler = spec.models["sd"].model_copy(update={"checkpoint": "demo:upscale"})
        route = spec.routes["text2img"].model_copy(update={"task": "upscale"})
        spec = spec.model_copy(
            update={"models": {"sd": upscaler}, "routes": {"text2img": route}, "default_route": None}
        )

    with pytest.raises(SpecError, match=says[fault]):
        plan_for(spec)


def test_the_plan_tells_sizes_and_rows(net: Path, tmp_path: Path) -> None:
    """By ControlNet, those that no row uses too."""
    rows = [
        {"prompt": "a fox", "controlnet": name, "control_image": IMAGE} for name in ("canny", None, "canny")
    ]
    plan, findings = make_plan(make_survey(spec_of(tmp_path, rows, {"canny": str(net), "idle": str(net)})))
    console = Console(record=True, width=120)

    print_plan(plan, findings, console)

    shown = console.export_text()
    assert "ControlNet canny of sd: " in shown
    assert findings.adapter_rows == {("ControlNet", "sd", "canny"): 2}


def test_other_weights_are_another_job_and_stop_a_worker(net: Path, tmp_path: Path) -> None:
    """The fingerprint has the hash of a local ControlNet's files, and a worker compares them."""
    changed = copy_with(net, tmp_path / "net")
    spec = spec_of(tmp_path, [{"prompt": "a fox"}], {"canny": str(changed)})
    before = plan_for(spec).job
    weights = changed / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)

    after = plan_for(spec).job

    assert before.fingerprint != after.fingerprint
    with pytest.raises(SpecError, match="does not have the content that the driver saw"):
        net_on_this_machine("canny", before.models["sd"].controlnets["canny"], 5.0)


def test_rows_that_are_guided_alike_have_equal_parameters() -> None:
    """However they ask for it: so they can share calls."""
    base = {
        "controlnet_conditioning_scale": 0.5,
        "control_guidance_start": 0.0,
        "control_guidance_end": 1.0,
        "guess_mode": False,
    }
    alone = settled_controls(base | {"controlnet": "canny", "controls": None})
    listed = settled_controls(base | {"controlnet": None, "controls": '[{"controlnet":"canny"}]'})
    none = settled_controls(base | {"controlnet": "", "controls": "[]"})

    assert alone == listed
    assert {*none.values()} == {None}
    assert controls_of(none) == ()

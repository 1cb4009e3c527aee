"""Prompts beyond the text encoder's 75 tokens: what is cut is recorded, and in windows nothing is cut."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from compel.convenience_wrappers import CompelForSD, CompelForSDXL
from PIL import Image

from actors.engine.calls.prompt_encoding import takes_embeddings
from actors.engine.diffusers_engine import DiffusersEngine
from actors.engine.quirks.clip_skip import enable_clip_skip
from schemas.columns.output_columns import IMAGE_TYPE
from schemas.spec.job_spec import JobSpec
from schemas.systems.system_table import SYSTEMS, find_system
from tests.support.checkpoints import demo
from tests.support.in_process import (
    DEVICE,
    Made,
    Record,
    diffusers_messages,
    drawn_image,
    encoded,
    image_of,
    job_spec,
    make,
    mask,
    model_cache,
    write_rows,
)

LEVELS = 2
"""Of 255: a row's company in a batch may move it this far, no further."""

# Each word is one token for the demo's tokenizer.
FIRST, SECOND, THIRD = (" ".join([word] * 75) for word in ("the", "and", "of"))
SHORT = "a fox in the snow"
LONG = f"{FIRST} {SECOND}"


def row(name: str, prompt: str | None, **values: Any) -> Record:
    """One input row."""
    return {"row_id": name, "prompt": prompt, "seed": 3, "num_inference_steps": 2} | values


def spec_for(folder: Path, rows: list[Record], checkpoint: str = "demo:sd", **changes: Any) -> JobSpec:
    """A job over one model, called `sd` as in_process's routes call it."""
    rows_file = write_rows(folder / "in.parquet", rows, {"depth_map": IMAGE_TYPE})
    return job_spec(rows_file, folder / "out", **{"models": {"sd": {"checkpoint": checkpoint}}} | changes)


def plain(kind: str, cls: type = diffusers.StableDiffusionPipeline) -> Any:
    """The demo checkpoint's own pipeline."""
    pipeline = cls.from_pretrained(demo(kind), use_safetensors=True)  # type: ignore[attr-defined]
    pipeline.set_progress_bar_config(disable=True)
    enable_clip_skip(pipeline.text_encoder)
    return pipeline


# What is cut is recorded.

PROMPTS = {
    "short": SHORT,
    "empty": "",
    "just": FIRST,
    "one-more": f"{FIRST} of",
    "long": f"A painting of {LONG}, café, 雪",
}


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_what_the_tokenizer_cuts_stands_in_a_column(tmp_path: Path, kind: str) -> None:
    """In the words of diffusers' own warning; null where the whole prompt was read."""
    made = make(spec_for(tmp_path, [row(name, text) for name, text in PROMPTS.items()], f"demo:{kind}"))
    cls = diffusers.StableDiffusionPipeline if kind == "sd" else diffusers.StableDiffusionXLPipeline
    pipeline = plain(kind, cls)

    found = {each["row_id"]: each["prompt_truncated"] for each in made.rows}

    assert [found[name] for name in ("short", "empty", "just")] == [None, None, None]
    for name in ("one-more", "long"):
        with diffusers_messages() as said:
            windows_of(pipeline, PROMPTS[name])
        assert said[0].endswith(f"77 tokens: {[found[name]]}")


def test_what_is_cut_begins_with_a_whole_character(tmp_path: Path) -> None:
    """Wherever the cut is: a fox has four bytes, and here they are in several tokens."""
    prompts = {f"after {num}": " ".join(["the"] * num + ["🦊🦊🦊🦊"]) for num in range(66, 75)}
    made = make(spec_for(tmp_path, [row(name, text) for name, text in prompts.items()]))
    tokenizer = plain("sd").tokenizer
    rests = [tokenizer.decode(tokenizer(text)["input_ids"][76:-1]) for text in prompts.values()]

    found = [each["prompt_truncated"] for each in made.rows if each["prompt_truncated"]]

    assert any(rest.startswith("\ufffd") for rest in rests)
    assert len(found) == sum(bool(rest) for rest in rests)
    assert {character for text in found for character in text} == {"🦊"}


def test_what_is_cut_off_a_negative_prompt_stands_beside_it(tmp_path: Path) -> None:
    """Where it is read at all: without guidance it is not."""
    rows = [
        row("negative", SHORT, negative_prompt=LONG),
        row("both", LONG, negative_prompt=f"{FIRST} {THIRD}"),
        row("just", SHORT, negative_prompt=FIRST),
        row("unguided", SHORT, negative_prompt=LONG, guidance_scale=1.0),
    ]

    made = make(spec_for(tmp_path, rows))

    assert [(each["prompt_truncated"], each["negative_prompt_truncated"]) for each in made.rows] == [
        (None, SECOND),
        (SECOND, THIRD),
        (None, None),
        (None, None),
    ]
    assert "prompt_2_truncated" not in made.rows[0]


def test_each_text_of_xl_says_what_was_cut_off_it(tmp_path: Path) -> None:
    """A text that both encoders read is cut off for both, and said once."""
    rows = [
        row("own", LONG, prompt_2=f"{FIRST} {THIRD}", negative_prompt=SHORT, negative_prompt_2=LONG),
        row("shared", LONG, prompt_2=None, negative_prompt=LONG, negative_prompt_2=None),
        row("second", SHORT, prompt_2=LONG, negative_prompt=None, negative_prompt_2=None),
    ]
    names = ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2")

    made = make(spec_for(tmp_path, rows, "demo:sdxl"))

    assert [tuple(each[f"{name}_truncated"] for name in names) for each in made.rows] == [
        (SECOND, THIRD, None, SECOND),
        (SECOND, None, SECOND, None),
        (None, SECOND, None, None),
    ]


def test_a_cut_at_a_later_step_is_recorded_too(tmp_path: Path) -> None:
    """An image that was varied without a prompt, then redrawn with a long one."""
    spec = spec_for(
        tmp_path,
        [row("chain", LONG, task="chain", image=drawn_image(), negative_prompt=f"{FIRST} {THIRD}")],
        models={"vary": {"checkpoint": "demo:variation"}, "sd": {"checkpoint": "demo:sd"}},
        routes={
            "chain": {"task": "variation", "model": "vary", "then": ["img2img"]},
            "img2img": {"model": "sd", "num_inference_steps": 2},
        },
        default_route="chain",
    )

    made = make(spec).row("chain")

    assert (made["status"], made["prompt_truncated"]) == ("ok", SECOND)
    assert made["negative_prompt_truncated"] == THIRD


def test_a_cut_at_an_earlier_step_stays_recorded(tmp_path: Path) -> None:
    """Though the step after it goes without guidance, and so without the negative prompt."""
    routes = {
        "chain": {"task": "text2img", "model": "sd", "then": ["img2img"]},
        "img2img": {"model": "sd", "num_inference_steps": 2, "guidance_scale": 1.0},
    }
    rows = [row("chain", SHORT, negative_prompt=LONG)]

    made = make(spec_for(tmp_path, rows, routes=routes, default_route="chain")).row("chain")

    assert (made["status"], made["negative_prompt_truncated"]) == ("ok", SECOND)


# In windows nothing is cut.


def windows_of(pipeline: Any, *texts: str, **arguments: Any) -> list[torch.Tensor | None]:
    """Each text is one window: encoded by diffusers on its own, then joined; pooled ones are the first's."""
    found = [
        pipeline.encode_prompt(
            text, device=DEVICE, num_images_per_prompt=1, do_classifier_free_guidance=False, **arguments
        )
        for text in texts
    ]
    pooled = found[0][2] if len(found[0]) > 2 else None
    return [torch.cat([each[0] for each in found], dim=1), pooled]


def plain_image(pipeline: Any, **arguments: Any) -> np.ndarray:
    generator = torch.Generator("cpu").manual_seed(3)
    made = pipeline(num_inference_steps=2, generator=generator, **arguments).images[0]
    return np.asarray(made, np.int16)


def close(made: Made, row_id: str, theirs: np.ndarray) -> bool:
    ours = made.row(row_id)
    assert ours["status"] == "ok", ours["error_message"]
    assert {value for name, value in ours.items() if name.endswith("_truncated")} == {None}
    return bool(np.abs(np.asarray(image_of(ours), np.int16) - theirs).max() <= LEVELS)


def test_a_long_prompt_is_what_plain_diffusers_makes_of_its_windows(tmp_path: Path) -> None:
    """With one, two or three windows and with skipped layers; the shorter text of a row, positive or
    negative, is filled up with empty windows."""
    rows = [
        row("two", LONG),
        row("three", f"{LONG} {THIRD}", negative_prompt=SHORT),
        row("negative", SHORT, negative_prompt=LONG),
        row("skip", LONG, clip_skip=1),
        row("unguided", SHORT, negative_prompt=LONG, guidance_scale=1.0),
    ]
    made = make(spec_for(tmp_path, rows, long_prompts="chunk"))
    pipeline = plain("sd")

    def made_of(prompts: list[str], negatives: list[str], **skip: int) -> np.ndarray:
        positive, _ = windows_of(pipeline, *prompts, **skip)
        negative, _ = windows_of(pipeline, *negatives)
        return plain_image(pipeline, prompt_embeds=positive, negative_prompt_embeds=negative)

    assert close(made, "two", made_of([FIRST, SECOND], ["", ""]))
    assert close(made, "three", made_of([FIRST, SECOND, THIRD], [SHORT, "", ""]))
    assert close(made, "negative", made_of([SHORT, ""], [FIRST, SECOND]))
    assert close(made, "skip", made_of([FIRST, SECOND], ["", ""], clip_skip=1))
    assert close(made, "unguided", plain_image(pipeline, prompt=SHORT, guidance_scale=1.0))


def test_xl_reads_windows_with_both_encoders_and_pools_the_first(tmp_path: Path) -> None:
    """Without a negative prompt it is given zeros, as XL gives itself."""
    rows = [
        row("none", LONG),
        row("negative", LONG, negative_prompt=SHORT),
        row("second", SHORT, prompt_2=LONG, clip_skip=1),
        row("two-negatives", LONG, negative_prompt=SHORT, negative_prompt_2=THIRD),
    ]
    made = make(spec_for(tmp_path, rows, "demo:sdxl", long_prompts="chunk"))
    pipeline = plain("sdxl", diffusers.StableDiffusionXLPipeline)

    def encoded_pairs(pairs: list[tuple[str, str]], **skip: int) -> tuple[torch.Tensor, torch.Tensor]:
        found = [windows_of(pipeline, first, prompt_2=second, **skip) for first, second in pairs]
        return torch.cat([each[0] for each in found], dim=1), found[0][1]

    def made_of(
        prompts: list[tuple[str, str]], negatives: list[tuple[str, str]] | None, **skip: int
    ) -> np.ndarray:
        embeds, pooled = encoded_pairs(prompts, **skip)
        none = (torch.zeros_like(embeds), torch.zeros_like(pooled))
        negative, negative_pooled = encoded_pairs(negatives) if negatives else none
        return plain_image(
            pipeline,
            prompt_embeds=embeds,
            pooled_prompt_embeds=pooled,
            negative_prompt_embeds=negative,
            negative_pooled_prompt_embeds=negative_pooled,
        )

    same = [(FIRST, FIRST), (SECOND, SECOND)]
    assert close(made, "none", made_of(same, None))
    assert close(made, "negative", made_of(same, [(SHORT, SHORT), ("", "")]))
    assert close(made, "two-negatives", made_of(same, [(SHORT, THIRD), ("", "")]))
    # diffusers takes a missing second text for the first one; a space is a text without tokens.
    assert close(made, "second", made_of([(SHORT, FIRST), (" ", SECOND)], None, clip_skip=1))


def test_the_latent_upscaler_reads_windows_too(tmp_path: Path) -> None:
    """Its embeddings are its own: the last layer without its norm, and what the first window comes to."""
    image = drawn_image()
    spec = spec_for(
        tmp_path,
        [row("up", LONG, image=image)],
        "demo:latent-upscale",
        routes={"latent_upscale": {"model": "sd"}},
        default_route="latent_upscale",
        long_prompts="chunk",
    )
    pipeline = plain("latent-upscale", diffusers.StableDiffusionLatentUpscalePipeline)

    made = make(spec)

    found = [pipeline.encode_prompt(text, DEVICE, False) for text in (FIRST, SECOND, "", "")]
    embeds, negative = (torch.cat([first[0], second[0]], dim=1) for first, second in (found[:2], found[2:]))
    theirs = plain_image(
        pipeline,
        image=image_of({"image": image}),
        prompt_embeds=embeds,
        pooled_prompt_embeds=found[0][2],
        negative_prompt_embeds=negative,
        negative_pooled_prompt_embeds=found[2][2],
    )
    assert close(made, "up", theirs)


def test_a_refiner_without_a_negative_prompt_reads_an_empty_one(tmp_path: Path) -> None:
    """It is published without the switch that gives XL's base zeros."""
    image = drawn_image()
    spec = spec_for(
        tmp_path,
        [row("refined", LONG, image=image, strength=0.9)],
        "demo:sdxl-refiner",
        routes={"img2img": {"model": "sd"}},
        default_route="img2img",
        long_prompts="chunk",
    )
    pipeline = diffusers.StableDiffusionXLImg2ImgPipeline.from_pretrained(
        demo("sdxl-refiner"), use_safetensors=True
    )
    pipeline.set_progress_bar_config(disable=True)

    made = make(spec)

    embeds, pooled = windows_of(pipeline, FIRST, SECOND)
    negative, negative_pooled = windows_of(pipeline, "", "")
    theirs = plain_image(
        pipeline,
        image=image_of({"image": image}),
        strength=0.9,
        prompt_embeds=embeds,
        pooled_prompt_embeds=pooled,
        negative_prompt_embeds=negative,
        negative_pooled_prompt_embeds=negative_pooled,
    )
    assert close(made, "refined", theirs)


@pytest.mark.parametrize("text", [LONG, "a (fox)1.5"], ids=["long", "weighted"])
def test_a_step_without_a_prompt_may_follow_one_with_windows_or_weights(tmp_path: Path, text: str) -> None:
    """What the first step did with its texts is not done again."""
    spec = spec_for(
        tmp_path,
        [row("chain", text)],
        models={"sd": {"checkpoint": "demo:sd"}, "vary": {"checkpoint": "demo:variation"}},
        routes={
            "chain": {"task": "text2img", "model": "sd", "then": ["variation"]},
            "variation": {"model": "vary", "num_inference_steps": 2},
        },
        default_route="chain",
        long_prompts="chunk",
        prompt_weights="compel",
    )

    made = make(spec).row("chain")

    assert made["status"] == "ok", made["error_message"]


DEPTH = encoded(Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)))
OTHERS: dict[str, tuple[str, Record]] = {
    "sd": ("inpaint", {"image": drawn_image(), "mask_image": mask()}),
    "depth2img": ("depth2img", {"image": drawn_image()}),
    "upscale": ("upscale", {"image": drawn_image((32, 32))}),
    "ldm3d": ("ldm3d", {}),
    "ldm3d-upscale": (
        "ldm3d_upscale",
        {"image": drawn_image(), "depth_map": DEPTH, "height": 128, "width": 128},
    ),
    "sdxl-refiner": ("img2img", {"image": drawn_image(), "strength": 0.9}),
}


def test_every_system_that_takes_encoded_prompts_reads_to_the_end(tmp_path: Path) -> None:
    """What stands in the second window shows in the image."""
    rows = [
        row(f"{kind} {word}", f"{FIRST} {word}", model=kind, task=task) | inputs
        for kind, (task, inputs) in OTHERS.items()
        for word in ("snow", "hills")
    ]
    spec = spec_for(
        tmp_path,
        rows,
        models={kind: {"checkpoint": f"demo:{kind}"} for kind in OTHERS},
        routes={task: {"model": kind} for kind, (task, _) in OTHERS.items()},
        default_route="ldm3d",
        long_prompts="chunk",
    )

    made = make(spec)

    assert [(each["row_id"], each["error_message"]) for each in made.rows if each["status"] != "ok"] == []
    assert {each["prompt_truncated"] for each in made.rows} == {None}
    for kind in OTHERS:
        assert made.row(f"{kind} snow")["image_sha256"] != made.row(f"{kind} hills")["image_sha256"], kind


def test_only_safe_takes_no_encoded_prompts(tmp_path: Path) -> None:
    """It cuts them whatever the spec says, and the columns say what."""
    made = make(
        spec_for(
            tmp_path,
            [row("safe", LONG, negative_prompt=f"{FIRST} {THIRD}")],
            routes={"safe": {"model": "sd"}},
            default_route="safe",
            long_prompts="chunk",
        )
    )

    assert (made.row("safe")["status"], made.row("safe")["prompt_truncated"]) == ("ok", SECOND)
    assert made.row("safe")["negative_prompt_truncated"] == THIRD
    prompted = {system.pipeline for system in SYSTEMS if "prompt" in system.texts}
    assert [name for name in prompted if not takes_embeddings(name)] == ["StableDiffusionPipelineSafe"]


def test_a_short_prompt_has_the_same_bits_under_both_settings(tmp_path: Path) -> None:
    """It goes the way that diffusers goes."""
    rows = [row(f"r{i}", f"{SHORT} {i}", seed=i) for i in range(3)] + [row("just", FIRST)]
    hashes = []
    for setting in ("truncate", "chunk"):
        (tmp_path / setting).mkdir()
        made = make(spec_for(tmp_path / setting, rows, long_prompts=setting))
        hashes.append([each["image_sha256"] for each in made.rows])

    assert hashes[0] == hashes[1]


def test_rows_with_different_numbers_of_windows_never_share_a_call(tmp_path: Path) -> None:
    """Of two rows each with one, two and three windows, three calls are made."""
    rows = [row(f"r{i}", text) for i, text in enumerate([SHORT, LONG, f"{LONG} {THIRD}"] * 2)]
    spec = spec_for(tmp_path, rows, long_prompts="chunk")
    models = model_cache(spec)
    system = find_system("sd", "text2img")
    assert system is not None
    shapes: list[tuple[int, ...]] = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        shapes.append(tuple(kwargs["encoder_hidden_states"].shape[:2]))

    handle = models.get("sd").pipeline(system, None).unet.register_forward_pre_hook(note, with_kwargs=True)
    try:
        made = make(spec, DiffusersEngine(models, spec))
    finally:
        handle.remove()

    assert {each["status"] for each in made.rows} == {"ok"}
    assert set(shapes) == {(4, 77), (4, 154), (4, 231)}


# Weights.


def compel_of(pipeline: Any, text: str) -> torch.Tensor:
    """What compel's own wrapper makes of a text."""
    found: torch.Tensor = CompelForSD(pipeline)(text).embeds
    return found.detach()


def test_weights_are_those_of_compel(tmp_path: Path) -> None:
    """Up, down and in a negative prompt; in a row without them the signs' absence is all that counts."""
    texts = {"up": "a (fox)1.5 in the snow", "down": "a fox in the (snow)0.4", "plain": SHORT}
    rows = [row(name, text) for name, text in texts.items()]
    rows += [row("negative", SHORT, negative_prompt="grey++"), row("long", f"(fox)1.5 {FIRST} (hill)0.5")]
    (tmp_path / "off").mkdir()
    exact = {"exact": True}
    made = make(spec_for(tmp_path, rows, prompt_weights="compel", long_prompts="chunk", batching=exact))
    off = make(spec_for(tmp_path / "off", rows[2:3], batching=exact))
    pipeline = plain("sd")

    for name, text in texts.items():
        theirs = plain_image(
            pipeline,
            prompt_embeds=compel_of(pipeline, text),
            negative_prompt_embeds=compel_of(pipeline, ""),
        )
        assert close(made, name, theirs)
    negative = {"prompt_embeds": compel_of(pipeline, SHORT)}
    negative["negative_prompt_embeds"] = compel_of(pipeline, "grey++")
    assert close(made, "negative", plain_image(pipeline, **negative))
    assert made.row("long")["status"] == "ok"
    assert made.row("plain")["image_sha256"] == off.row("plain")["image_sha256"]


def test_xl_weighs_with_both_encoders_and_pools_the_bare_text(tmp_path: Path) -> None:
    """compel itself would let the pooled embedding read brackets and numbers. Rows of one call differ."""
    texts = {"up": ("a (fox)1.5", "a fox"), "down": ("a hill, (snow)0.4", "a hill, snow")}
    rows = [row(name, weighted) for name, (weighted, _) in texts.items()]
    made = make(spec_for(tmp_path, rows, "demo:sdxl", prompt_weights="compel"))
    pipeline = plain("sdxl", diffusers.StableDiffusionXLPipeline)

    for name, (weighted, bare) in texts.items():
        embeds = CompelForSDXL(pipeline)(weighted).embeds.detach()
        _, pooled = windows_of(pipeline, bare)
        theirs = plain_image(
            pipeline,
            prompt_embeds=embeds,
            pooled_prompt_embeds=pooled,
            negative_prompt_embeds=torch.zeros_like(embeds),
            negative_pooled_prompt_embeds=torch.zeros_like(pooled),
        )
        assert close(made, name, theirs)


def test_what_cannot_be_weighed_fails_alone(tmp_path: Path) -> None:
    """Whole prompts against each other, and anything for Safe; where weights are off, all of it is text."""
    rows = [
        row("blend", '("a fox", "a hill").blend(1, 1)'),
        row("and", '("a fox", "a hill").and()'),
        row("swap", "a fox.swap(hill) in the snow"),
        row("weighted", "a (fox)1.5"),
        row("skipping", "a (fox)1.5", clip_skip=1),
        row("safe", "a (fox)1.5", task="safe"),
        row("plain", SHORT, task="safe"),
    ]
    routes = {"text2img": {"model": "sd"}, "safe": {"model": "sd"}}
    codes = {}
    for setting in ("compel", "off"):
        (tmp_path / setting).mkdir()
        made = make(spec_for(tmp_path / setting, rows, routes=routes, prompt_weights=setting))
        codes[setting] = [each["error_code"] for each in made.rows]

    assert codes == {
        "compel": [*["invalid_prompt"] * 3, None, None, "invalid_prompt", None],
        "off": [None] * 7,
    }

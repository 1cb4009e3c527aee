"""Facts about the world of shapes: its drawing, its judge, its training, and the model in models/shapes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import nn

from tests.support.running import ROOT
from tools import train_adapters, train_shapes
from tools.shapes import exam, family, training, world
from tools.shapes import model_parts as parts
from tools.shapes.judge import look
from tools.shapes.training import Stage
from tools.shapes.world import SCENES, TRAINING_SCENES, Array, Scene

MODEL = ROOT / "models" / "shapes"


def drawn(count: int) -> tuple[list[Scene], Array]:
    scenes = [SCENES[number] for number in np.random.default_rng(0).integers(len(SCENES), size=count)]
    return scenes, world.draw(scenes, np.random.default_rng(1))[0]


def told_wrong(scenes: list[Scene], pictures: Array) -> list[tuple[Scene, str]]:
    """What the judge does not see as it was drawn."""
    pairs = [(scene, look(picture)) for scene, picture in zip(scenes, pictures, strict=True)]
    return [
        (scene, fact)
        for scene, seen in pairs
        for fact in exam.FACTS
        if getattr(seen, fact) != getattr(scene, fact)
    ]


def blurred(pictures: Array) -> Array:
    """Each pixel mixed with its eight neighbours."""
    padded = np.pad(pictures.astype(float), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    rows = (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4
    return ((rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 4).astype(np.uint8)


def test_the_judge_reads_every_drawn_image_right() -> None:
    """Of 500 drawn images, it says all five facts as they were drawn."""
    scenes, pictures = drawn(500)

    wrong = told_wrong(scenes, pictures)

    assert wrong == []


def test_the_judge_bears_blur_and_noise() -> None:
    """It reads images whose edges are soft and whose colours are a little off, as a model's are."""
    scenes, pictures = drawn(300)
    noise = np.random.default_rng(2).normal(0, 8, pictures.shape)
    soft = (blurred(pictures) + noise).clip(0, 255).astype(np.uint8)

    wrong = told_wrong(scenes, soft)

    assert wrong == []


def test_the_judge_names_nothing_that_is_not_there() -> None:
    """A plain image has a background and nothing else; noise and stripes have no shape."""
    plain = np.full((64, 64, 3), world.COLOURS["green"], dtype=np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    stripes = plain.copy()
    stripes[20:28] = world.COLOURS["red"]

    seen = [look(picture) for picture in (plain, noise, stripes)]

    assert (seen[0].background, seen[0].shape, seen[0].colour) == ("green", None, None)
    assert [one.shape for one in seen[1:]] == [None, None]


def test_held_out_scenes_are_never_drawn_for_training() -> None:
    """About a fifth of all combinations is held out, and every word of the world is in both parts."""
    held_out = [scene for scene in SCENES if scene.is_held_out()]

    shared = set(held_out) & set(TRAINING_SCENES)

    assert not shared
    assert 0.15 < len(held_out) / len(SCENES) < 0.25
    for scenes in (held_out, TRAINING_SCENES):
        assert {scene.shape for scene in scenes} == set(world.SHAPES)
        assert (
            {scene.colour for scene in scenes} == {scene.background for scene in scenes} == set(world.COLOURS)
        )


def test_a_prompt_tells_its_scene_and_nothing_else() -> None:
    """Whatever a prompt tells stands in it, and what it leaves out does not."""
    rng = np.random.default_rng(0)

    told = [(scene, *world.some_prompt(scene, rng)) for scene in world.some_scenes(rng, 500)]

    for scene, prompt, facts in told:
        assert (scene.colour in prompt) == ("colour" in facts)
        assert (scene.background in prompt) == ("background" in facts)
        assert (scene.shape in prompt) == ("shape" in facts)
        assert any(word in prompt for word in world.POSITION_WORDS[scene.position]) == ("position" in facts)


def test_the_tokenizer_knows_the_worlds_words_whole_and_any_other_text_by_bytes() -> None:
    """A word of the world is one token; other text, in any language, still comes back from its tokens."""
    tokenizer = parts.tokenizer()

    words = {word: tokenizer.tokenize(word) for word in world.all_words()}
    others = {
        text: tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True)
        for text in ("zürich", "狐")
    }

    assert all(tokens == [f"{word}</w>"] for word, tokens in words.items())
    assert all(back.strip() == text for text, back in others.items())


class StoppedError(Exception):
    """What ends a training in the midst here."""


def test_a_training_that_was_stopped_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    """Stopped after its third step and started again, a stage ends with the same weights, bit for bit."""
    stage = Stage(name="line", num_steps=6, learning_rate=0.1, save_every_s=0)

    def start(folder: Path, stop_at: int = 100) -> nn.Module:
        torch.manual_seed(0)
        folder.mkdir(exist_ok=True)
        calls = 0

        def loss_of(modules: nn.ModuleDict, rng: np.random.Generator) -> torch.Tensor:
            nonlocal calls
            calls += 1
            if calls > stop_at:
                raise StoppedError
            given = torch.from_numpy(rng.random((4, 3), dtype=np.float32)) + torch.randn(4, 3)
            return modules["line"](given).square().mean()

        return training.train(stage, nn.ModuleDict({"line": nn.Linear(3, 1)}), loss_of, folder)["line"]

    through = start(tmp_path / "through")
    with pytest.raises(StoppedError):
        start(tmp_path / "stopped", stop_at=3)
    resumed = start(tmp_path / "stopped")

    assert torch.equal(through.weight, resumed.weight)


def test_the_trainer_writes_checkpoints_that_diffusers_loads(tmp_path: Path) -> None:
    """A step of each stage makes a base that draws, and siblings that fit it."""
    train_shapes.main(
        output=tmp_path / "models",
        work=tmp_path / "work",
        vae_steps=1,
        decoder_steps=1,
        text_steps=1,
        unet_steps=1,
        depth_unet_steps=1,
        depth_estimator_steps=1,
        num_images=70,
        num_threads=1,
    )

    base = StableDiffusionPipeline.from_pretrained(tmp_path / "models" / family.BASE)
    made = base("a red circle", num_inference_steps=1, output_type="np").images[0]
    deep = family.load_ldm3d(tmp_path / "models")("a red circle", num_inference_steps=1, output_type="np")
    depth = family.load_depth2img(tmp_path / "models")
    picture, slope = Image.fromarray(drawn(1)[1][0]), torch.linspace(0, 1, 64).expand(1, 64, 64)
    repainted = depth("a red circle", image=picture, depth_map=slope, num_inference_steps=2).images[0]
    assert made.shape == (world.SIZE, world.SIZE, 3)
    assert deep.rgb.shape[1:] == (world.SIZE, world.SIZE, 3)
    assert deep.depth.shape[1:3] == (world.SIZE, world.SIZE)
    assert repainted.size == (world.SIZE, world.SIZE)


def test_an_outline_is_a_thin_white_line_around_its_shape() -> None:
    """Two pixels wide or three, at the edge of a filled circle and neither within nor outside of it."""
    scene = Scene(shape="circle", colour="red", background="white", size="big", position="left")
    _, depths = world.draw([scene], np.random.default_rng(0), jitter=0)

    (outline,) = world.outlines(depths)

    x, y = world.POSITIONS["left"]
    axis = np.arange(world.SIZE) + 0.5
    distances = np.hypot(axis[None] - x, axis[:, None] - y)
    least, most = world.RADII["big"]
    on_line = (distances > most - 1) & (distances < least + 1)
    assert (outline[on_line] == 255).all()
    assert (outline[(distances < least - 3) | (distances > most + 3)] == 0).all()


def test_the_trainer_of_adapters_writes_what_diffusers_loads(tmp_path: Path) -> None:
    """A few steps make a LoRA and a ControlNet for the finished checkpoint, which stays as it is."""
    (tmp_path / family.BASE).symlink_to(MODEL)

    train_adapters.main(
        output=tmp_path, work=tmp_path / "work", lora_steps=1, net_steps=1, num_images=4, num_threads=1
    )

    for task in ("night", "outline"):
        (answer,) = exam.TASKS[task](tmp_path / family.BASE, 1, seed=1, num_inference_steps=1)
        assert answer.image.shape == (world.SIZE, world.SIZE, 3)


def test_the_model_draws_what_its_prompt_says() -> None:
    """Of ten held-out scenes it gets both colours right in nine at least, and eight shapes and places."""
    answers = exam.text2img(MODEL, 10, seed=1, num_inference_steps=20, guidance_scale=2.0)

    right = {
        fact: sum(getattr(answer.scene, fact) == getattr(answer.seen, fact) for answer in answers)
        for fact in exam.FACTS
    }

    assert min(right["colour"], right["background"]) >= 9, right
    assert min(right["shape"], right["position"]) >= 8, right

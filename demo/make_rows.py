"""Draw the demo's input and write it as demo/rows.parquet, with the same bytes every time.

Run it as `python -m demo.make_rows`. The rows are small enough for any machine, and varied enough to
take every path: every system, chains, different steps, guidance and strengths, missing values, two
images for one row, and one row whose image cannot be read.
"""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from tools.shapes import world

ROWS = Path(__file__).with_name("rows.parquet")
SIZE = 64
BROKEN = "broken-on-purpose"

Colour = tuple[int, int, int]
Row = dict[str, Any]

IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
IMAGE_COLUMNS = ("image", "mask_image", "depth_map", "control_image")
FEATURES = {"info": {"features": {name: {"_type": "Image"} for name in IMAGE_COLUMNS}}}
SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("task", pa.string()),
        ("prompt", pa.string()),
        ("negative_prompt", pa.string()),
        ("image", IMAGE),
        ("mask_image", IMAGE),
        ("depth_map", IMAGE),
        ("control_image", IMAGE),
        ("seed", pa.int64()),
        ("num_inference_steps", pa.int32()),
        ("guidance_scale", pa.float64()),
        ("strength", pa.float64()),
        ("noise_level", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("num_images_per_prompt", pa.int32()),
        ("loras", pa.string()),
        ("category", pa.string()),
    ],
    metadata={"huggingface": json.dumps(FEATURES)},
)


def write_rows(path: Path) -> None:
    """Write every demo row to `path`."""
    table = pa.Table.from_pylist(list(demo_rows()), schema=SCHEMA)
    # PNGs are compressed already.
    pq.write_table(table, path, compression="none", write_page_index=True)


def demo_rows() -> Iterator[Row]:
    """Yield the rows in the file's order: the tasks are mixed, as in a dataset."""
    yield text("a big red circle at the left on a white background", seed=1)
    yield redraw("big green square left white", "a blue square", seed=2)
    yield text("a small yellow star at the top on a blue background", seed=3, steps=12)
    yield mend("big red circle right black", "a big yellow star at the right on a black background", seed=4)
    yield text("a big purple ring in the centre on a yellow background", "circle", seed=5, guidance=3.5)
    yield redraw("big orange star centre black", "a white star", strength=0.75, seed=6, steps=25)
    yield text("a large green triangle on the right, on orange", seed=7, steps=25)
    yield text("a tiny white cross at the bottom on a red background", seed=8, steps=30, guidance=3.0)
    yield mend(
        "big blue square left yellow", "a big red ring at the left on a yellow background", seed=9, steps=15
    )
    yield redraw("big yellow ring right purple", "a green ring", seed=10, steps=18)
    yield text("a black square on a yellow background", seed=11, num_images=2)
    yield text("a big orange cross on a purple background", "small", seed=12, steps=16, guidance=4.0)
    yield broken("a red circle")
    yield redraw("big black triangle centre white", "an orange triangle", "black", seed=13, steps=22)
    yield mend(
        "big white cross centre blue", "a big orange circle in the centre on a blue background", seed=14
    )
    yield text("blue star on white", seed=15, guidance=3.0)
    yield text("a little red triangle at the top on white", seed=16)
    # Without guidance, an image follows its prompt less closely.
    yield text("a big yellow circle on a green background", seed=17, guidance=1.0)
    yield words("safe", "a big blue circle in the middle on a white background", seed=18)
    yield words("safe", "a small black ring at the left on an orange background", seed=19, guidance=4.0)
    yield drawn("depth2img", "big red star centre white", "a yellow star on a blue background", seed=20)
    yield drawn(
        "depth2img", "big green ring left black", "a red ring on a white background", with_depth=True, seed=21
    )
    yield words("poster", "a big green star in the centre on a black background", seed=24)
    yield words("ldm3d", "a big red circle at the right on a white background", seed=25)
    yield words("ldm3d", "a small blue square at the left on a yellow background", seed=26)
    yield words(
        "ldm3d", "a big blue star at the right on an orange background", seed=37, height=64, width=128
    )
    yield from rows_with_adapters()
    yield from rows_of_random_weights()


def rows_with_adapters() -> Iterator[Row]:
    """Yield rows with a LoRA, with a ControlNet, and with both."""
    by_day = "a big yellow star in the centre on a white background"
    yield words("night", by_day, seed=40)
    yield words("night", by_day, seed=40, loras={"night": 0.75}) | {"row_id": "night-falls"}
    yield words("night", by_day, seed=40, loras={}) | {"row_id": "night-has-not-come"}
    yield outlined("big orange triangle left white", "a green shape on a yellow background", seed=41)
    # The outline decides, and not the prompt.
    yield outlined("big red star right white", "a small blue circle on a white background", seed=42)
    yield outlined(
        "big red ring top white", "a purple ring on an orange background", seed=43, loras={"night": 1.0}
    )


def rows_of_random_weights() -> Iterator[Row]:
    """Yield one or two rows for each system whose demo checkpoint has random weights."""
    yield noise("sd2", "glacier", "a glacier from above, large format", seed=27)
    yield noise("sd2", "violin", "a violin on a chair", "people", seed=28, guidance=6.0)
    yield noise("sdxl", "greenhouse", "a greenhouse at night, lit from inside", seed=29)
    yield noise("sdxl", "heron", "a heron in reeds, woodblock print", "text", seed=30, steps=6)
    yield noise("refined", "amber", "an insect in amber, macro", seed=31)
    yield noise("variation", "more-rings", image=rings, seed=32)
    yield noise("variation", "more-houses", image=blocks, seed=33, guidance=3.0)
    yield noise("upscale", "large-wall", "a brick wall, sharp", image=small_wall, seed=22)
    yield noise("upscale", "large-rings", "rings", image=small_rings, seed=23, noise_level=100)
    yield noise("latent_upscale", "wide-hills", "hills at sunset", image=sunset, seed=34)
    yield noise("latent_upscale", "wide-lake", "stars over a lake", image=night, seed=35, guidance=4.0)
    yield noise("relief", "coral", "a coral reef", seed=36)
    yield noise("ldm3d_upscale", "deep-rings", "rings of glass", image=rings, depth=bowl, seed=38)
    yield noise("ldm3d_upscale", "deep-wall", "an old wall", image=wall, depth=slope, seed=39, noise_level=60)


def text(prompt: str, negative: str | None = None, **values: Any) -> Row:
    """Return a text2img row."""
    return words("text2img", prompt, negative, **values)


def words(task: str, prompt: str, negative: str | None = None, **values: Any) -> Row:
    """Return a row of a task without an input image, for a model that draws shapes."""
    return _row(task, _name(task, prompt), "shapes", prompt, negative, **values)


def drawn(
    task: str,
    scene: str,
    prompt: str,
    negative: str | None = None,
    *,
    with_depth: bool = False,
    **values: Any,
) -> Row:
    """Return a row that starts from an image of a scene, such as `big red circle left white`."""
    image, depth = _draw(scene)
    row = _row(task, _name(task, prompt), "shapes", prompt, negative, image=_struct(_png(image)), **values)
    return row | {"depth_map": _struct(_png(depth)) if with_depth else None}


def outlined(scene: str, prompt: str, **values: Any) -> Row:
    """Return a row that follows the outline of a scene's shape."""
    _, depths = world.draw([_scene(scene)], np.random.default_rng(0))
    outline = Image.fromarray(world.outlines(depths)[0]).convert("RGB")
    return words("outline", prompt, **values) | {"control_image": _struct(_png(outline))}


def redraw(scene: str, prompt: str, negative: str | None = None, **values: Any) -> Row:
    """Return an img2img row that repaints a scene."""
    return drawn("img2img", scene, prompt, negative, **values)


def mend(scene: str, prompt: str, **values: Any) -> Row:
    """Return an inpaint row that repaints a scene in and around its shape."""
    row = drawn("inpaint", scene, prompt, **values)
    return row | {"mask_image": _struct(_png(_mask(scene)))}


def noise(
    task: str,
    row_id: str,
    prompt: str | None = None,
    negative: str | None = None,
    *,
    image: Callable[[], Image.Image] | None = None,
    depth: Callable[[], Image.Image] | None = None,
    **values: Any,
) -> Row:
    """Return a row for a checkpoint with random weights."""
    image_struct = _struct(_png(image())) if image else None
    row = _row(task, row_id, "noise", prompt, negative, image=image_struct, **values)
    return row | {"depth_map": _struct(_png(depth())) if depth else None}


def broken(prompt: str) -> Row:
    """Return a row that fails without affecting others: the second half of its PNG is missing."""
    whole = _png(rings())
    row = _row("img2img", BROKEN, "shapes", prompt, None, seed=1)
    return row | {"image": _struct(whole[: len(whole) // 2])}


def _name(task: str, prompt: str) -> str:
    """The row's id, such as `img2img-a-blue-square`."""
    return "-".join([task, *prompt.replace(",", "").split()])


def _scene(words: str) -> world.Scene:
    size, colour, shape, position, background = words.split()
    return world.Scene(shape=shape, colour=colour, background=background, size=size, position=position)


def _draw(words: str) -> tuple[Image.Image, Image.Image]:
    """The image of a scene, and its depth map of 16 bits."""
    images, depths = world.draw([_scene(words)], np.random.default_rng(0))
    return Image.fromarray(images[0]), Image.fromarray((depths[0] * 65535).astype(np.uint16))


def _mask(words: str) -> Image.Image:
    """A mask whose white area, which inpaint repaints, is a square around the scene's shape."""
    x, y = world.POSITIONS[_scene(words).position]
    mask = Image.new("L", (SIZE, SIZE))
    ImageDraw.Draw(mask).rectangle((x - 20, y - 20, x + 19, y + 19), fill=255)
    return mask


def _row(
    task: str,
    row_id: str,
    category: str,
    prompt: str | None,
    negative: str | None,
    *,
    image: dict[str, Any] | None = None,
    seed: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    strength: float | None = None,
    noise_level: int | None = None,
    height: int | None = None,
    width: int | None = None,
    num_images: int | None = None,
    loras: dict[str, float] | None = None,
) -> Row:
    return {
        "row_id": row_id,
        "task": task,
        "prompt": prompt,
        "negative_prompt": negative,
        "image": image,
        "mask_image": None,
        "depth_map": None,
        "control_image": None,
        "seed": seed,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "strength": strength,
        "noise_level": noise_level,
        "height": height,
        "width": width,
        "num_images_per_prompt": num_images,
        "loras": None if loras is None else json.dumps(loras),
        "category": category,
    }


def sunset() -> Image.Image:
    """An image of a low sun behind two hills."""
    image = _gradient((52, 40, 104), (250, 150, 84))
    draw = ImageDraw.Draw(image)
    draw.ellipse((22, 22, 46, 46), fill=(255, 226, 140))
    draw.ellipse((-24, 40, 44, 100), fill=(86, 62, 108))
    draw.ellipse((18, 46, 92, 110), fill=(48, 40, 78))
    return image


def night() -> Image.Image:
    """An image of stars over a lake."""
    image = _gradient((10, 14, 44), (34, 82, 120))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 44, 63, 63), fill=(14, 40, 66))
    for x, y in ((8, 10), (20, 22), (52, 8), (58, 26), (12, 34), (46, 36)):
        draw.rectangle((x, y, x + 1, y + 1), fill=(250, 244, 214))
    for y in range(47, 63, 4):
        draw.line((20 - y // 4, y, 44 + y // 4, y), fill=(58, 112, 148))
    return image


def wall() -> Image.Image:
    """An image of a brick wall."""
    image = Image.new("RGB", (SIZE, SIZE), (214, 202, 186))
    draw = ImageDraw.Draw(image)
    for course in range(8):
        for brick in range(-1, 5):
            left = brick * 16 + (course % 2) * 8
            shade = (course * 5 + brick * 3) % 4 * 9
            box = (left, course * 8, left + 14, course * 8 + 6)
            draw.rectangle(box, fill=(176 - shade, 84 - shade // 2, 62))
    return image


def blocks() -> Image.Image:
    """An image of a row of houses in different colours."""
    image = _gradient((250, 214, 170), (250, 240, 220))
    draw = ImageDraw.Draw(image)
    houses = ((0, 30, (222, 108, 84)), (13, 20, (240, 180, 70)), (26, 34, (92, 156, 140)))
    houses += ((39, 24, (80, 108, 160)), (52, 38, (190, 92, 120)))
    for left, top, colour in houses:
        draw.rectangle((left, top, left + 12, 63), fill=colour)
        for window in range(top + 4, 58, 9):
            draw.rectangle((left + 4, window, left + 8, window + 4), fill=(255, 244, 196))
    return image


def rings() -> Image.Image:
    """An image of coloured rings."""
    image = Image.new("RGB", (SIZE, SIZE), (26, 26, 40))
    draw = ImageDraw.Draw(image)
    colours = ((236, 86, 86), (244, 162, 72), (250, 220, 96), (98, 190, 130), (76, 140, 210), (140, 100, 190))
    for ring, colour in enumerate(colours):
        edge = 3 + ring * 5
        draw.ellipse((edge, edge, 63 - edge, 63 - edge), fill=colour)
    return image


def disc_mask() -> Image.Image:
    """A mask whose white area, which inpaint repaints, is a disc near the middle."""
    mask = Image.new("L", (SIZE, SIZE))
    ImageDraw.Draw(mask).ellipse((16, 12, 48, 44), fill=255)
    return mask


def small_wall() -> Image.Image:
    """The brick wall at half its size."""
    return wall().resize((SIZE // 2, SIZE // 2))


def small_rings() -> Image.Image:
    """The rings at half their size."""
    return rings().resize((SIZE // 2, SIZE // 2))


def slope() -> Image.Image:
    """A depth map of 16 bits: far at the top, near at the bottom."""
    return _depth(lambda x, y: y * 1040)


def bowl() -> Image.Image:
    """A depth map of 16 bits: near at the edges, far in the middle."""
    return _depth(lambda x, y: (2 * x - 63) ** 2 * 8 + (2 * y - 63) ** 2 * 8)


def _depth(depth_at: Callable[[int, int], int]) -> Image.Image:
    depths = [[depth_at(x, y) for x in range(SIZE)] for y in range(SIZE)]
    return Image.fromarray(np.array(depths, np.uint16))


def _gradient(top: Colour, bottom: Colour) -> Image.Image:
    image = Image.new("RGB", (SIZE, SIZE))
    draw = ImageDraw.Draw(image)
    for y in range(SIZE):
        red, green, blue = (a + (b - a) * y // (SIZE - 1) for a, b in zip(top, bottom, strict=True))
        draw.line((0, y, SIZE - 1, y), fill=(red, green, blue))
    return image


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def _struct(image: bytes) -> dict[str, Any]:
    return {"bytes": image, "path": None}


if __name__ == "__main__":
    write_rows(ROWS)

"""Draw the demo's input and write it as demo/rows.parquet, the same bytes every time.

Run as `python -m demo.make_rows`. The rows are small enough for any machine and wide enough to
meet every path: every system, chains, varied steps, guidance and strengths, missing values, two
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

ROWS = Path(__file__).with_name("rows.parquet")
SIZE = 64
BROKEN = "broken-on-purpose"

Colour = tuple[int, int, int]
Row = dict[str, Any]

IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
PICTURES = ("image", "mask_image", "depth_map")
FEATURES = {"info": {"features": {name: {"_type": "Image"} for name in PICTURES}}}
SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("task", pa.string()),
        ("prompt", pa.string()),
        ("negative_prompt", pa.string()),
        ("image", IMAGE),
        ("mask_image", IMAGE),
        ("depth_map", IMAGE),
        ("seed", pa.int64()),
        ("num_inference_steps", pa.int32()),
        ("guidance_scale", pa.float64()),
        ("strength", pa.float64()),
        ("noise_level", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("num_images_per_prompt", pa.int32()),
        ("category", pa.string()),
    ],
    metadata={"huggingface": json.dumps(FEATURES)},
)


def write_rows(path: Path) -> None:
    """Write every demo row to `path`."""
    table = pa.Table.from_pylist(list(demo_rows()), schema=SCHEMA)
    # PNGs do not shrink a second time.
    pq.write_table(table, path, compression="none", write_page_index=True)


def demo_rows() -> Iterator[Row]:
    """Yield the rows in the file's order: the tasks mixed, as a dataset has them."""
    yield text("lighthouse", "coast", "a lighthouse on a cliff at dawn, oil painting", steps=8, guidance=7.5)
    yield redraw("sunset-hills", "landscape", "rolling hills at sunset, watercolour", sunset, 0.6, steps=10)
    yield text("red-fox", "animal", "a red fox in fresh snow, soft light", "blurry", seed=7, steps=6)
    yield mend("moon-lake", "landscape", "a full moon over a still lake", night, disc_mask, 1.0, steps=8)
    yield text("oranges", "still-life", "a bowl of oranges on a blue table", seed=21, guidance=5.0)
    yield redraw("paper-boat", "still-life", "a paper boat on the sea, gouache", boat, 0.75, "text", seed=3)
    yield text(
        "tram", "city", "a yellow tram in Lisbon in the rain", "people", seed=4, steps=12, guidance=9.0
    )
    yield text("whale", "animal", "a blue whale among stars, paper cut", steps=5, guidance=6.0)
    yield mend(
        "round-window", "city", "a round window full of plants", wall, disc_mask, 0.9, seed=12, steps=6
    )
    yield redraw("city-blocks", "city", "a town of coloured houses, isometric", blocks, 0.5, seed=5, steps=9)
    yield text("teapot", "still-life", "a copper teapot, studio photograph", "text", guidance=8.0)
    yield text("mountain-hut", "landscape", "a mountain hut under northern lights", seed=11, steps=10)
    yield broken("a garden gate in spring, pastel")
    yield text("owl", "animal", "an owl made of autumn leaves", seed=2, steps=4, guidance=4.0, num_images=2)
    yield redraw(
        "rainbow-rings", "abstract", "rings of coloured glass, macro", rings, 0.8, steps=7, guidance=6.5
    )
    yield mend("sea-sky", "coast", "a wide sky with gulls", boat, sky_mask, 0.85, "clouds", seed=9, steps=11)
    yield text("train-station", "city", "an old train station in morning fog", "crowd", steps=7, guidance=7.0)
    yield text("desert-road", "landscape", "a straight road through the desert, film", seed=33)
    yield redraw(
        "night-garden", "landscape", "fireflies in a garden at night", night, 0.4, seed=14, guidance=10.0
    )
    yield text("tulips", "still-life", "tulips in a glass jar, Dutch master", "frame", seed=17, steps=9)
    yield mend(
        "tower-block", "city", "a tower with a copper roof", blocks, sky_mask, 0.7, seed=6, guidance=5.5
    )
    yield text("otters", "animal", "two otters holding hands, pencil drawing", seed=8, steps=6, guidance=3.0)
    yield redraw(
        "evening-sun", "abstract", "a sun of folded silk", sunset, 0.9, "photo", steps=12, guidance=7.5
    )
    yield text("ink-drops", "abstract", "ink drops in clear water", seed=40, steps=8, guidance=1.0)
    yield from rows_of_other_systems()


def rows_of_other_systems() -> Iterator[Row]:
    """Yield two rows or so of each system that the first rows do not meet."""
    yield words("safe", "quiet-street", "city", "a quiet street after the parade", seed=15)
    yield words("safe", "market", "city", "a market hall at noon, watercolour", seed=16, guidance=9.0)
    yield words("sd2", "glacier", "landscape", "a glacier from above, large format", seed=18)
    yield words("sd2", "violin", "still-life", "a violin on a chair", "people", seed=19, guidance=6.0)
    yield words("sdxl", "greenhouse", "city", "a greenhouse at night, lit from inside", seed=20)
    yield words("sdxl", "heron", "animal", "a heron in reeds, woodblock print", "text", seed=22, steps=6)
    yield words("refined", "amber", "still-life", "an insect in amber, macro", seed=23)
    yield words("poster", "jazz-night", "city", "a poster for a night of jazz", "photo", seed=24)
    yield drawn("depth2img", "clay-hills", "landscape", "hills of clay, studio light", sunset, seed=25)
    yield drawn(
        "depth2img", "felt-boat", "still-life", "a boat of felt", boat, depth=slope, seed=26, strength=0.8
    )
    yield drawn("variation", "more-rings", "abstract", None, rings, seed=27)
    yield drawn("variation", "more-houses", "city", None, blocks, seed=28, guidance=3.0)
    yield drawn("upscale", "large-boat", "still-life", "a boat with one sail", boat, side=32, seed=29)
    yield drawn(
        "upscale", "large-wall", "city", "a brick wall, sharp", wall, side=32, seed=30, noise_level=100
    )
    yield drawn("latent_upscale", "wide-hills", "landscape", "hills at sunset", sunset, seed=31)
    yield drawn("latent_upscale", "wide-lake", "landscape", "stars over a lake", night, seed=32, guidance=4.0)
    yield words("ldm3d", "canyon", "landscape", "a canyon with a river", seed=34)
    yield words("ldm3d", "panorama", "landscape", "a mountain panorama", seed=35, height=64, width=128)
    yield words("relief", "coral", "animal", "a coral reef", seed=36)
    yield drawn("ldm3d_upscale", "deep-rings", "abstract", "rings of glass", rings, depth=bowl, seed=37)
    yield drawn(
        "ldm3d_upscale", "deep-wall", "city", "an old wall", wall, depth=slope, seed=38, noise_level=60
    )


def text(row_id: str, category: str, prompt: str, negative: str | None = None, **values: Any) -> Row:
    """Return a row made from words alone."""
    return words("text2img", row_id, category, prompt, negative, **values)


def words(
    task: str, row_id: str, category: str, prompt: str, negative: str | None = None, **values: Any
) -> Row:
    """Return a row of any task that needs words alone."""
    return _row(task, row_id, category, prompt, negative, **values)


def drawn(
    task: str,
    row_id: str,
    category: str,
    prompt: str | None,
    draw: Callable[[], Image.Image],
    *,
    depth: Callable[[], Image.Image] | None = None,
    side: int = SIZE,
    **values: Any,
) -> Row:
    """Return a row of any task that starts from a picture, with its depth map where `depth` draws one."""
    image = _struct(_png(draw().resize((side, side))))
    row = _row(task, row_id, category, prompt, None, image=image, **values)
    return row | {"depth_map": _struct(_png(depth())) if depth else None}


def redraw(
    row_id: str,
    category: str,
    prompt: str,
    draw: Callable[[], Image.Image],
    strength: float,
    negative: str | None = None,
    **values: Any,
) -> Row:
    """Return a row that starts from a picture."""
    image = _struct(_png(draw()))
    return _row("img2img", row_id, category, prompt, negative, image=image, strength=strength, **values)


def mend(
    row_id: str,
    category: str,
    prompt: str,
    draw: Callable[[], Image.Image],
    mask: Callable[[], Image.Image],
    strength: float,
    negative: str | None = None,
    **values: Any,
) -> Row:
    """Return a row that repaints a picture where its mask is white."""
    row = redraw(row_id, category, prompt, draw, strength, negative, **values)
    return row | {"task": "inpaint", "mask_image": _struct(_png(mask()))}


def broken(prompt: str) -> Row:
    """Return a row that must fail alone: its PNG stops half way."""
    whole = _png(rings())
    row = redraw(BROKEN, "landscape", prompt, rings, 0.6, seed=1, steps=8)
    return row | {"image": _struct(whole[: len(whole) // 2])}


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
) -> Row:
    return {
        "row_id": row_id,
        "task": task,
        "prompt": prompt,
        "negative_prompt": negative,
        "image": image,
        "mask_image": None,
        "depth_map": None,
        "seed": seed,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "strength": strength,
        "noise_level": noise_level,
        "height": height,
        "width": width,
        "num_images_per_prompt": num_images,
        "category": category,
    }


def sunset() -> Image.Image:
    """A low sun behind two hills."""
    picture = _gradient((52, 40, 104), (250, 150, 84))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((22, 22, 46, 46), fill=(255, 226, 140))
    draw.ellipse((-24, 40, 44, 100), fill=(86, 62, 108))
    draw.ellipse((18, 46, 92, 110), fill=(48, 40, 78))
    return picture


def night() -> Image.Image:
    """Stars over a lake."""
    picture = _gradient((10, 14, 44), (34, 82, 120))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 44, 63, 63), fill=(14, 40, 66))
    for x, y in ((8, 10), (20, 22), (52, 8), (58, 26), (12, 34), (46, 36)):
        draw.rectangle((x, y, x + 1, y + 1), fill=(250, 244, 214))
    for y in range(47, 63, 4):
        draw.line((20 - y // 4, y, 44 + y // 4, y), fill=(58, 112, 148))
    return picture


def boat() -> Image.Image:
    """A boat with one sail."""
    picture = _gradient((170, 216, 240), (236, 246, 244))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 42, 63, 63), fill=(40, 120, 160))
    draw.polygon(((32, 8), (32, 38), (54, 38)), fill=(250, 250, 246))
    draw.polygon(((10, 40), (56, 40), (46, 52), (20, 52)), fill=(206, 70, 54))
    return picture


def wall() -> Image.Image:
    """A brick wall."""
    picture = Image.new("RGB", (SIZE, SIZE), (214, 202, 186))
    draw = ImageDraw.Draw(picture)
    for course in range(8):
        for brick in range(-1, 5):
            left = brick * 16 + (course % 2) * 8
            shade = (course * 5 + brick * 3) % 4 * 9
            box = (left, course * 8, left + 14, course * 8 + 6)
            draw.rectangle(box, fill=(176 - shade, 84 - shade // 2, 62))
    return picture


def blocks() -> Image.Image:
    """A row of houses in different colours."""
    picture = _gradient((250, 214, 170), (250, 240, 220))
    draw = ImageDraw.Draw(picture)
    houses = ((0, 30, (222, 108, 84)), (13, 20, (240, 180, 70)), (26, 34, (92, 156, 140)))
    houses += ((39, 24, (80, 108, 160)), (52, 38, (190, 92, 120)))
    for left, top, colour in houses:
        draw.rectangle((left, top, left + 12, 63), fill=colour)
        for window in range(top + 4, 58, 9):
            draw.rectangle((left + 4, window, left + 8, window + 4), fill=(255, 244, 196))
    return picture


def rings() -> Image.Image:
    """Coloured rings."""
    picture = Image.new("RGB", (SIZE, SIZE), (26, 26, 40))
    draw = ImageDraw.Draw(picture)
    colours = ((236, 86, 86), (244, 162, 72), (250, 220, 96), (98, 190, 130), (76, 140, 210), (140, 100, 190))
    for ring, colour in enumerate(colours):
        edge = 3 + ring * 5
        draw.ellipse((edge, edge, 63 - edge, 63 - edge), fill=colour)
    return picture


def disc_mask() -> Image.Image:
    """White in the middle: what is to be repainted."""
    mask = Image.new("L", (SIZE, SIZE))
    ImageDraw.Draw(mask).ellipse((16, 12, 48, 44), fill=255)
    return mask


def sky_mask() -> Image.Image:
    """White in the upper half."""
    mask = Image.new("L", (SIZE, SIZE))
    ImageDraw.Draw(mask).rectangle((0, 0, 63, 27), fill=255)
    return mask


def slope() -> Image.Image:
    """Sixteen bits of depth: far above, near below."""
    return _depth(lambda x, y: y * 1040)


def bowl() -> Image.Image:
    """Sixteen bits of depth: near at the edges, far in the middle."""
    return _depth(lambda x, y: (2 * x - 63) ** 2 * 8 + (2 * y - 63) ** 2 * 8)


def _depth(depth_at: Callable[[int, int], int]) -> Image.Image:
    depths = [[depth_at(x, y) for x in range(SIZE)] for y in range(SIZE)]
    return Image.fromarray(np.array(depths, np.uint16))


def _gradient(top: Colour, bottom: Colour) -> Image.Image:
    picture = Image.new("RGB", (SIZE, SIZE))
    draw = ImageDraw.Draw(picture)
    for y in range(SIZE):
        red, green, blue = (a + (b - a) * y // (SIZE - 1) for a, b in zip(top, bottom, strict=True))
        draw.line((0, y, SIZE - 1, y), fill=(red, green, blue))
    return picture


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def _struct(image: bytes) -> dict[str, Any]:
    return {"bytes": image, "path": None}


if __name__ == "__main__":
    write_rows(ROWS)

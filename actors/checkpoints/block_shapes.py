"""How many of a checkpoint's blocks differ in shape, as its configuration tells: each is compiled for itself.

Blocks that work at one resolution, on as many channels, and give as many, share their compiled code.
"""

from collections.abc import Mapping, Sequence
from typing import Any

MAX_BLOCKS = MAX_LAYERS = 100
"""The most blocks and layers of a block. No real checkpoint has so many, and a hostile one could ask for more
than there is time to count."""
PLAIN_BLOCKS = frozenset({"DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"})
"""The blocks of all published UNets but the latent upscaler's."""

_CROSS = "CrossAttn"
_CHANNELS = (320, 640, 1280, 1280)
_DOWN = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
_UP = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")
"""The defaults of UNet2DConditionModel (diffusers 0.42.1)."""


def num_unet_shapes(config: Mapping[str, Any]) -> int:
    """The most shapes that the blocks of a UNet with this configuration have for one shape of its input.

    TypeError or ValueError if the configuration is damaged.
    """
    channels = [int(number) for number in config.get("block_out_channels", _CHANNELS)]
    down, up = config.get("down_block_types", _DOWN), config.get("up_block_types", _UP)
    layers = _layers(config.get("layers_per_block", 2), len(channels))
    if not PLAIN_BLOCKS.issuperset([*down, *up]):
        # At most a ResNet block and an attention block in each layer.
        return 2 * sum(layers) + 2 * sum(number + 1 for number in layers)
    # In channels_last, what an attention block with linear projections gives lies otherwise in memory.
    relaid = bool(config.get("use_linear_projection"))
    shapes: set[tuple[object, ...]] = set()
    previous, skipped = channels[0], [channels[0]]
    for level, (kind, out, number) in enumerate(zip(down, channels, layers, strict=True)):
        for layer in range(number):
            shapes |= _layer(kind, level, previous, out, relaid=relaid and layer > 0)
            previous = out
            skipped.append(out)
        skipped.append(out)
    # The downsampler, whose result the last of these would be, is missing in the last block.
    skipped.pop()
    last = len(channels) - 1
    # A block in the middle divides by 1 and not by 1.0, which is another one to the compiler.
    shapes |= {("middle", last, False), ("middle", last, relaid), (_CROSS, last, previous)}
    for below, (kind, out, number) in enumerate(zip(up, channels[::-1], layers[::-1], strict=True)):
        for layer in range(number + 1):
            channels_in = previous + skipped.pop()
            shapes |= _layer(kind, last - below, channels_in, out, relaid=relaid and layer > 0)
            previous = out
    return len(shapes)


def num_decoder_shapes(config: Mapping[str, Any]) -> int:
    """The same of a VAE's decoder."""
    channels = [int(number) for number in config["block_out_channels"]]
    (number,) = _layers(config.get("layers_per_block", 1), 1)
    shapes: set[tuple[object, ...]] = set()
    previous = channels[-1]
    for level, out in enumerate(channels[::-1]):
        for _ in range(number + 1):
            shapes |= _layer("", level, previous, out)
            previous = out
    # In the middle: the attention, and the blocks before and after it, which may be laid out differently.
    return len(shapes) + 3


def _layer(
    kind: str, level: int, channels: int, out: int, *, relaid: bool = False
) -> set[tuple[object, ...]]:
    """The shapes of the blocks of a layer; `relaid`: it may follow such an attention block."""
    attends = _CROSS in kind
    shapes: set[tuple[object, ...]] = {("resnet", level, channels, out, relaid and attends)}
    return shapes | {(_CROSS, level, out)} if attends else shapes


def _layers(number: int | Sequence[int], num_blocks: int) -> list[int]:
    """The number of layers of each block."""
    if num_blocks > MAX_BLOCKS:
        raise ValueError(f"there are {num_blocks} blocks")
    numbers = [number] * num_blocks if isinstance(number, int) else [int(each) for each in number]
    if len(numbers) != num_blocks or not all(0 < each <= MAX_LAYERS for each in numbers):
        raise ValueError(f"layers_per_block is {number!r:.80}")
    return numbers

"""ControlNets: loaded once in a worker, and called for rows that each have their own scale."""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import diffusers
import torch

from actors.checkpoints.adapters.control_net_files import CONFIG, net_on_this_machine
from actors.engine.adapters.held_adapters import loading
from schemas.systems.model_card import ControlNetCard

logger = logging.getLogger(__name__)

Net = torch.nn.Module


class SharedNets:
    """The ControlNets in memory, by the content of their files: two models that name the same one share it.

    It keeps none alive: a ControlNet is freed with the last model that uses it.
    """

    def __init__(
        self, device: torch.device, *, channels_last: bool = False, deadline_s: float = 900.0
    ) -> None:
        """`deadline_s`: how long a download is tried again while the Hub is in trouble."""
        self._device = device
        self._channels_last = channels_last
        self._deadline_s = deadline_s
        self._alike: WeakValueDictionary[tuple[object, ...], Net] = WeakValueDictionary()

    def get(self, name: str, card: ControlNetCard, dtype: torch.dtype) -> Net:
        """The ControlNet with this card; SpecError if it cannot be loaded."""
        folder = net_on_this_machine(name, card, self._deadline_s)
        key = card.sha256, (folder / CONFIG).read_bytes(), dtype
        net = self._alike.get(key)
        if net is None:
            net = self._alike[key] = self._load(name, folder, card, dtype)
        return net

    def _load(self, name: str, folder: Path, card: ControlNetCard, dtype: torch.dtype) -> Net:
        logger.info("loading controlnet=%s folder=%s dtype=%s device=%s", name, folder, dtype, self._device)
        cls = getattr(diffusers, json.loads((folder / CONFIG).read_bytes())["_class_name"])
        with loading(f"the ControlNet `{name}`: {folder}"):
            net: Any = cls.from_pretrained(
                folder, variant=card.variant, torch_dtype=dtype, use_safetensors=True
            ).to(self._device)
        if self._channels_last:
            net.to(memory_format=torch.channels_last)
        loaded: Net = net.eval()
        return loaded


def scaled_by_row(net: Any) -> Callable[..., tuple[list[torch.Tensor], torch.Tensor]]:
    """A function that calls the ControlNet with a `conditioning_scale` for each row of the batch."""
    forward = net.forward

    def call(
        *, conditioning_scale: torch.Tensor, **arguments: Any
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        down, mid = forward(**arguments, conditioning_scale=1.0)
        scale = conditioning_scale.to(mid.dtype).reshape(-1, 1, 1, 1)
        return [residual * scale for residual in down], mid * scale

    return call


def idle_answer(net: Any) -> Callable[[Mapping[str, Any]], Any]:
    """A function that gives the ControlNet's result where it adds nothing, and None for other arguments.

    diffusers 0.42.1 runs a ControlNet with a scale of 0 before and after the steps that it guides.
    """
    config = net.config
    num_residuals = len(net.controlnet_down_blocks)
    reduced = 2 ** (len(config.block_out_channels) - 1)

    def answer(arguments: Mapping[str, Any]) -> tuple[list[torch.Tensor], torch.Tensor] | None:
        scale = arguments["conditioning_scale"]
        if isinstance(scale, list):
            # A union with several images scales these, and not its result.
            scale = scale[0] if len(scale) == 1 else True
        if isinstance(scale, torch.Tensor) or scale:
            return None
        sample = arguments["sample"]
        zeros = sample.new_zeros(sample.shape[0], 1, 1, 1)
        # With several ControlNets diffusers adds up in place what goes to the middle block, so it is whole.
        pooled = config.global_pool_conditions
        sides = (1 if pooled else -(-side // reduced) for side in sample.shape[2:])
        mid = sample.new_zeros(sample.shape[0], config.block_out_channels[-1], *sides)
        return [zeros] * num_residuals, mid

    return answer

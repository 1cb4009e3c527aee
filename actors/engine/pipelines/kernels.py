"""The spec's choices among torch's ways to compute: settings of a GPU, and changes of a UNet's modules."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch.nn.attention import SDPBackend, sdpa_kernel

from schemas.spec.job_spec import KernelsSpec

BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
"""Torch's implementations of attention, by the spec's names.

Only the last one computes everything. In torch 2.13 the first two need half precision. cuDNN has heads of up
to 128 channels, and on an H100 or H200 of up to 256 if it is new enough; flash attention has up to 256 and no
mask. So the VAE's one head of 512 is left for `efficient`, which has any multiple of 8.
"""


@contextmanager
def kernel_settings(device: torch.device, kernels: KernelsSpec) -> Iterator[None]:
    """While the block runs, the process uses a GPU as the spec says. On a CPU nothing changes.

    Afterwards all settings are as before, as far as their effect goes.
    """
    with ExitStack() as stack:
        if device.type == "cuda":
            _choose(stack, kernels)
        yield


def _choose(stack: ExitStack, kernels: KernelsSpec) -> None:
    if kernels.attention != "auto":
        first = BACKENDS[kernels.attention]
        order = [first, *(backend for backend in BACKENDS.values() if backend is not first)]
        stack.enter_context(sdpa_kernel(order, set_priority=True))
    if kernels.float32 != "auto":
        # After a change of the newer `fp32_precision`, torch 2.13 refuses to tell `allow_tf32`.
        for owner in (torch.backends.cuda.matmul, torch.backends.cudnn):
            stack.enter_context(_set(owner, "allow_tf32", kernels.float32 == "tf32"))
    if kernels.cudnn_benchmark:
        stack.enter_context(_set(torch.backends.cudnn, "benchmark", True))


@contextmanager
def _set(owner: Any, name: str, value: bool) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def fuse_projections(unet: Any) -> None:
    """Let the UNet compute queries, keys and values in one product, with no second copy of their weights.

    All pipelines of the checkpoint share the UNet, and so may another checkpoint: then it is fused already.
    """
    attentions = [module for module in unet.modules() if isinstance(module, Attention)]
    if any(attention.fused_projections for attention in attentions):
        return
    unet.fuse_qkv_projections()
    for attention in attentions:
        # diffusers 0.42.1 keeps the single layers beside the fused one, for `unfuse_qkv_projections`.
        if attention.is_cross_attention:
            _share(attention.to_kv, attention.to_k, attention.to_v)
        else:
            _share(attention.to_qkv, attention.to_q, attention.to_k, attention.to_v)


def _share(fused: torch.nn.Linear, *layers: torch.nn.Linear) -> None:
    """Make the layers' weights parts of the fused layer's."""
    sizes = [layer.out_features for layer in layers]
    for layer, weight in zip(layers, torch.split(fused.weight.data, sizes), strict=True):
        layer.weight.data = weight
    if fused.bias is not None:
        for layer, bias in zip(layers, torch.split(fused.bias.data, sizes), strict=True):
            layer.bias.data = bias

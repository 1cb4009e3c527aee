"""Embeddings of random numbers for the small checkpoints, saved as trainers save them."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from demo.small_components import TEXT_WIDTH


def save_embedding(
    file: Path,
    *,
    seed: int,
    num_vectors: int | tuple[int, int] = 1,
    name: str | tuple[str, str] = "emb_params",
    width: int = TEXT_WIDTH,
) -> Path:
    """Save vectors of random numbers for a token, and return their file.

    `name`: that of the tensor: diffusers' trainer has the token, others `emb_params`. For XL there are two
    tensors, `clip_l` and `clip_g`, and perhaps two numbers of vectors.
    """
    random = torch.Generator().manual_seed(seed)
    names = (name,) if isinstance(name, str) else name
    nums = (num_vectors,) * len(names) if isinstance(num_vectors, int) else num_vectors
    # Those of published files are as long as the other tokens' are, or longer.
    tensors = {
        each: torch.randn((num, width), generator=random) for each, num in zip(names, nums, strict=True)
    }
    save_file(tensors, file)
    return file

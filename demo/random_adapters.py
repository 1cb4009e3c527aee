"""Adapters of random weights for any small checkpoint, by the kind that `darkroom demo-model` is given."""

import sys
from collections.abc import Callable
from pathlib import Path

from demo.random_control_nets import save_control_net
from demo.random_loras import save_lora
from models.whole_folder import all_or_nothing
from schemas.errors import SpecError

Builder = Callable[[Path, Path, int], object]
"""What saves an adapter in a new folder, for the checkpoint in another one, with a seed."""


def _build_lora(folder: Path, checkpoint: Path, seed: int) -> None:
    """A LoRA for the attentions of the checkpoint's UNet."""
    save_lora(folder / "pytorch_lora_weights.safetensors", checkpoint, seed=seed)


def _build_control_net(folder: Path, checkpoint: Path, seed: int) -> None:
    """A ControlNet in diffusers' format."""
    save_control_net(folder, checkpoint, seed=seed)


BUILDERS: dict[str, Builder] = {"lora": _build_lora, "controlnet": _build_control_net}


def main(kind: str, checkpoint: str, folder: str, seed: str) -> int:
    """Build an adapter and return the exit code; an error of the caller is one line on standard error."""
    try:
        with all_or_nothing(Path(folder)) as unfinished:
            BUILDERS[kind](unfinished, Path(checkpoint), int(seed))
    except (OSError, SpecError) as error:
        print(f"{error}".splitlines()[0], file=sys.stderr)
        return SpecError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

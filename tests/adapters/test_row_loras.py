"""Layers of which each row of a batch has LoRAs of its own."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from peft.tuners.lora import LoraLayer

from actors.engine.adapters import row_loras
from actors.engine.adapters.false_reports import without_false_reports
from actors.engine.adapters.row_loras import (
    Loras,
    RowLinear,
    all_have,
    forget_factors,
    rows_have,
    take_out,
)
from demo.random_loras import ATTENTION, CONVOLUTIONS
from tests.support.checkpoints import sd_checkpoint

ROWS = 6
CLOSE = 2e-5
"""Floats of a batch differ from those of single rows by rounding; the rows' LoRAs change them by about 1."""


def adapted_unet() -> Any:
    """A UNet with three LoRAs: `low` and `high` have other ranks, and `wide` changes convolutions too."""
    unet = UNet2DConditionModel.from_pretrained(sd_checkpoint(), subfolder="unet")
    torch.manual_seed(0)
    for name, rank, alpha, layers in (
        ("low", 2, 1, ATTENTION),
        ("high", 7, 14, ATTENTION),
        ("wide", 4, 4, (*ATTENTION, *CONVOLUTIONS, "time_emb_proj", "linear_1")),
    ):
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=[*layers], init_lora_weights=False)
        with without_false_reports():
            unet.add_adapter(config, name)
    return unet


@pytest.fixture(scope="module")
def in_peft() -> Any:
    """The UNet with peft's own layers."""
    return adapted_unet()


@pytest.fixture(scope="module")
def unet() -> Any:
    """The UNet with layers that know rows."""
    unet = adapted_unet()
    for layer in unet.modules():
        for name in [*layer.lora_A] if isinstance(layer, LoraLayer) else ():
            take_out(layer, name)
            with without_false_reports():
                layer.delete_adapter(name)
    return unet


def inputs(rows: int = ROWS) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return (
        torch.randn(rows, 4, 8, 8, generator=generator),
        torch.full((rows,), 400.0),
        torch.randn(rows, 77, 32, generator=generator),
    )


@torch.inference_mode()
def alone(unet: Any, loras: Sequence[Loras]) -> torch.Tensor:
    """What diffusers gives for each row alone."""
    results = []
    for row, (sample, timestep, states) in zip(loras, zip(*inputs(len(loras)), strict=True), strict=True):
        if row:
            unet.set_adapters([name for name, _ in row], [weight for _, weight in row])
            unet.enable_lora()
        results.append(unet(sample[None], timestep[None], states[None]).sample)
        unet.disable_lora()
    return torch.cat(results)


@torch.inference_mode()
def together(unet: Any, loras: Sequence[Loras]) -> torch.Tensor:
    """What the UNet gives for all rows in one batch."""
    with rows_have(loras):
        sample: torch.Tensor = unet(*inputs(len(loras))).sample
    return sample


LOW, HIGH, WIDE = (("low", 0.8),), (("high", -0.6),), (("wide", 1.0),)


@pytest.mark.parametrize(
    "loras",
    [
        [LOW, HIGH, WIDE, (), (*LOW, *HIGH), (*HIGH, *WIDE)],
        [LOW, LOW, WIDE, WIDE, (), ()],
        [(), (), (), LOW, LOW, WIDE],
        [(*LOW, *WIDE)] * ROWS,
        [(("low", weight),) for weight in (0.1, 0.2, -0.5, 1.0, 1.5, 2.0)],
    ],
    ids=["all-different", "pairs", "uneven-groups", "all-equal", "weights"],
)
def test_each_row_of_a_batch_is_what_it_is_alone(unet: Any, in_peft: Any, loras: list[Loras]) -> None:
    assert (together(unet, loras) - alone(in_peft, loras)).abs().max() < CLOSE


@pytest.mark.parametrize("loras", [LOW, (*LOW, *HIGH), (*HIGH, *WIDE)], ids=["one", "two", "convolutions"])
def test_loras_of_all_rows_have_the_bits_of_peft(unet: Any, in_peft: Any, loras: Loras) -> None:
    with torch.inference_mode(), all_have(loras):
        ours = unet(*inputs(1)).sample

    assert (ours == alone(in_peft, [loras])).all()


def test_rows_change_by_their_own_loras_only(unet: Any) -> None:
    """A row without LoRAs is the base model's to the bit, whatever the others have."""
    base = together(unet, [()] * ROWS)

    mixed = together(unet, [(), LOW, (), WIDE, HIGH, ()])

    unchanged = [bool((mixed[row] == base[row]).all()) for row in range(ROWS)]
    assert unchanged == [True, False, True, False, False, True]


def test_a_batch_that_comes_again_joins_nothing(unet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_factors()
    loras = [LOW, HIGH, WIDE]
    first = together(unet, loras)
    monkeypatch.setattr(torch, "cat", lambda *_, **__: pytest.fail("joined again"))

    layer = next(each for each in unet.modules() if isinstance(each, RowLinear))
    with torch.inference_mode(), rows_have(loras):
        row_loras._running.factors(layer)
    monkeypatch.undo()
    assert (together(unet, loras) == first).all()


def test_factors_beyond_the_limit_are_joined_again(unet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_factors()
    loras = [LOW, HIGH, WIDE]
    kept = together(unet, loras)
    forget_factors()
    monkeypatch.setattr(row_loras, "KEPT_BYTES", 10_000)

    assert (together(unet, loras) == kept).all()
    assert 0 < sum(batch.size_bytes for batch in row_loras._running._recent.values()) <= 10_000


def test_outside_of_a_batch_nothing_is_added(unet: Any, in_peft: Any) -> None:
    together(unet, [WIDE] * ROWS)

    with torch.inference_mode():
        after = unet(*inputs(1)).sample

    assert (after == alone(in_peft, [()])).all()

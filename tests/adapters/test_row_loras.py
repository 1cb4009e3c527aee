"""Layers of which each row of a batch has LoRAs of its own."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig

from actors.engine.adapters import row_loras
from actors.engine.adapters.false_reports import without_false_reports
from actors.engine.adapters.row_loras import ROW_LAYERS, Loras, forget_factors, rows_have
from demo.random_loras import ATTENTION, CONVOLUTIONS
from tests.support.checkpoints import sd_checkpoint

ROWS = 6
CLOSE = 2e-5
"""Floats of a batch differ from those of single rows by rounding; the rows' LoRAs change them by about 1."""


@pytest.fixture(scope="module")
def unet() -> Any:
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
    for layer in unet.modules():
        layer.__class__ = ROW_LAYERS.get(type(layer), type(layer))
    unet.disable_lora()
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
def test_each_row_of_a_batch_is_what_it_is_alone(unet: Any, loras: list[Loras]) -> None:
    assert (together(unet, loras) - alone(unet, loras)).abs().max() < CLOSE


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

    layer = next(each for each in unet.modules() if type(each) in ROW_LAYERS.values())
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


def test_outside_of_a_batch_the_layers_are_pefts(unet: Any) -> None:
    sample = inputs()
    with torch.inference_mode():
        before = unet(*sample).sample
        together(unet, [WIDE] * ROWS)
        after = unet(*sample).sample

    assert (before == after).all()

"""The LoRAs of a model in memory: loaded when a row needs them, dropped when there is no room."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.engine.adapters.lora_cache import LoraCache
from demo.random_loras import TEXT, plain_pipeline, save_lora
from schemas.errors import SpecError
from tests.support.checkpoints import sd_checkpoint

PLENTY = 1 << 30


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three LoRAs of equal size; `c` changes the text encoder too."""
    folder = tmp_path_factory.mktemp("loras")
    return {
        name: save_lora(
            folder / f"{name}.safetensors", sd_checkpoint(), seed=seed, text=TEXT if name == "c" else ()
        )
        for seed, name in enumerate("abc", 1)
    }


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return plain_pipeline(sd_checkpoint())


@pytest.fixture
def caches(pipeline: Any, files: dict[str, Path]) -> Iterator[Any]:
    """Makes caches on one pipeline, and closes them."""
    with ExitStack() as stack:

        def cache(capacity_bytes: int = PLENTY) -> LoraCache:
            loras = LoraCache(pipeline, lambda name: files[name], capacity_bytes)
            stack.callback(loras.close)
            return loras

        yield cache


@torch.inference_mode()
def seen(pipeline: Any) -> torch.Tensor:
    """What the UNet makes of one row, without anything around the call."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 8, 8, generator=generator)
    states: torch.Tensor = pipeline.unet(latents, 300, torch.ones(1, 77, 32)).sample
    return states


def use(loras: LoraCache, *names: str) -> None:
    with loras.held(dict.fromkeys(names, 1.0)):
        pass


def test_a_lora_is_loaded_once(pipeline: Any, files: dict[str, Path]) -> None:
    loaded = []

    def find(name: str) -> Path:
        loaded.append(name)
        return files[name]

    loras = LoraCache(pipeline, find, PLENTY)

    use(loras, "a", "b")
    use(loras, "a")

    assert loras.names == ("b", "a")
    assert loaded == ["a", "b"]
    loras.close()


def test_those_used_longest_ago_make_room(caches: Any, files: dict[str, Path]) -> None:
    loras = caches(files["a"].stat().st_size + files["c"].stat().st_size)

    use(loras, "a")
    use(loras, "b")
    use(loras, "a")
    use(loras, "c")

    assert loras.names == ("a", "c")


def test_a_lora_counts_as_it_is_in_memory(caches: Any, files: dict[str, Path], tmp_path: Path) -> None:
    """Not as in its file, which may have half the precision of the modules."""
    for name in "de":
        halves = {key: tensor.half() for key, tensor in load_file(files["a"]).items()}
        save_file(halves, tmp_path / f"{name}.safetensors")
        files[name] = tmp_path / f"{name}.safetensors"
    loras = caches(2 * files["d"].stat().st_size)

    use(loras, "d")
    use(loras, "e")

    assert loras.names == ("e",)


def test_what_is_in_use_stays(caches: Any) -> None:
    loras = caches(1)

    with loras.held({"a": 1.0}):
        use(loras, "b")
        assert loras.names == ("a", "b")
    use(loras, "c")

    assert loras.names == ("c",)


def test_modules_are_as_before_unless_a_call_has_loras(caches: Any, pipeline: Any) -> None:
    before = seen(pipeline)
    loras = caches()

    with loras.held({"a": 1.0}):
        unused = seen(pipeline)
        with loras.plain({"a": 1.0}):
            used = seen(pipeline)
        afterwards = seen(pipeline)

    assert (unused == before).all()
    assert (afterwards == before).all()
    assert (used - before).abs().max() > 0.1


def test_a_dropped_model_leaves_no_lora_in_modules_that_others_share(caches: Any, pipeline: Any) -> None:
    one, other = caches(), caches()
    use(one, "a")
    use(other, "a")

    one.close()

    layers = [layer for layer in pipeline.unet.modules() if getattr(layer, "loras", None)]
    assert {len(layer.loras) for layer in layers} == {1}
    with other.held({"a": 1.0}), other.plain({"a": 1.0}):
        assert (seen(pipeline) != 0).any()


def test_a_module_is_changed_only_by_loras_that_have_layers_in_it(caches: Any) -> None:
    """Rows whose LoRAs differ only in the UNet share their encoded texts."""
    loras = caches()
    call = type("Call", (), {"loras": {"a": 1.0, "c": 0.5}})

    with loras.held(call.loras):
        by_component = {
            name: [weight for _, weight in loras.settings_of(name).of(call)]
            for name in ("unet", "text_encoder")
        }

    assert by_component == {"unet": [1.0, 0.5], "text_encoder": [0.5]}


def test_a_file_that_cannot_be_loaded_is_named(pipeline: Any, tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\0" * 100)
    loras = LoraCache(pipeline, lambda _: broken, PLENTY)

    with pytest.raises(SpecError, match=r"the LoRA `ink`: .*broken\.safetensors cannot be loaded"):
        use(loras, "ink")

    assert loras.names == ()


def test_loading_reports_nothing(
    caches: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """transformers reports the weights of other LoRAs as missing, and diffusers components without layers."""
    loras = caches()
    caplog.set_level(logging.WARNING)

    use(loras, "c", "a")
    use(loras, "b")

    assert caplog.messages == []
    assert "MISSING" not in capfd.readouterr().err

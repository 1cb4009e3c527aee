"""The LoRAs of a model, found and compared with its checkpoint before anything is loaded."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from actors.checkpoints.adapters.adapter_files import find_adapter
from actors.checkpoints.adapters.checkpoint_layers import Layers, layers_of
from actors.checkpoints.adapters.lora_layers import LoraLayer, lora_layers
from actors.checkpoints.adapters.lora_metadata import check_metadata
from actors.storage.stores import Stores
from schemas.errors import SpecError
from schemas.job import pinned
from schemas.spec.adapter_spec import AdapterSpec
from schemas.spec.job_spec import ModelSpec
from schemas.systems.model_card import AdapterFile, ModelCard
from schemas.systems.system_table import SYSTEMS
from schemas.wording.amounts import counted

FILES_AT_ONCE = 16
"""LoRAs that are looked at at the same time."""
MAX_NOTES = 20
"""The most LoRAs of a model that have a note of their own."""
_XL = "StableDiffusionXL"
MADE_FOR = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "XL", 1280: "XL's refiner"}
"""The kind of checkpoint, by the width of the encoded prompt that its UNet is given."""


def find_loras(
    name: str, model: ModelSpec, card: ModelCard, stores: Stores
) -> tuple[dict[str, AdapterFile], list[str]]:
    """(files by name, notes) of a model's LoRAs; SpecError for the first that the model cannot use.

    `name`: the model's name in the spec. Only headers are read, and what a hash needs.
    """
    if not model.loras:
        return {}, []
    if not any("loras" in system.defaults for system in SYSTEMS if system.family == card.family):
        raise SpecError(f"models.{name}.loras: diffusers loads no LoRAs for a checkpoint of {card.family}")
    layers, layers_per_block = layers_of(f"models.{name}.checkpoint", pinned(model, card))
    is_xl = card.pipeline.startswith(_XL)
    if not is_xl:
        layers.pop("text_encoder_2", None)

    def find(entry: tuple[str, AdapterSpec]) -> tuple[AdapterFile, str]:
        lora, spec = entry
        key = f"models.{name}.loras.{lora}"
        adapter = find_adapter(key, lora, spec, stores)
        shapes = {tensor: each.shape for tensor, each in adapter.header.tensors.items()}
        try:
            changed = lora_layers(shapes, layers_per_block if is_xl else None)
            _refuse_misfit(changed, layers, is_xl=is_xl)
            has_alphas = any(tensor.endswith(".alpha") for tensor in shapes)
            check_metadata(adapter.header.metadata, changed, has_alphas=has_alphas)
        except ValueError as error:
            raise SpecError(
                f"{key}: {adapter.location} cannot be used with {model.checkpoint}: {error}"
            ) from error
        notes = [*_notes(changed, layers, has_dora_scales=any("dora_scale" in tensor for tensor in shapes))]
        return adapter.file, f"{key}: {' and '.join(notes)}" if notes else ""

    with ThreadPoolExecutor(FILES_AT_ONCE) as threads:
        found = [*threads.map(find, model.loras.items())]
    notes = [note for _, note in found if note]
    if others := notes[MAX_NOTES:]:
        notes[MAX_NOTES:] = [
            f"models.{name}.loras: diffusers leaves out a part of {counted(len(others), 'more LoRA')} too"
        ]
    return {file.name: file for file, _ in found}, notes


Components = Mapping[str, Layers | None]
"""The layers of a checkpoint by component; None where they are not known."""


def _refuse_misfit(changed: Sequence[LoraLayer], layers: Components, *, is_xl: bool) -> None:
    """Raise ValueError if diffusers would fail on the LoRA, or load it to no effect."""
    looked_at = [
        layer
        for layer in changed
        if layer.component in layers or (layer.component, is_xl) == ("text_encoder", True)
    ]
    if not looked_at:
        raise ValueError(
            f"it fits no layer, and diffusers would load it to no effect: {_first_of(changed)}. Save it with "
            "the pipeline's `save_lora_weights`, or convert it to kohya's form"
        )
    for component in dict.fromkeys(layer.component for layer in looked_at):
        of_component = [layer for layer in looked_at if layer.component == component]
        if component not in layers:
            raise ValueError(
                f"it changes {counted(len(of_component), 'layer')} of a {component}, which the checkpoint "
                "does not have, and diffusers would fail; remove these tensors from it"
            )
        known = layers[component]
        if known is None:
            continue
        # That of the encoded prompt tells best what the LoRA was made for.
        of_component.sort(key=lambda layer: not layer.name.endswith("attn2_to_k"))
        for layer in of_component:
            if layer.name in known and (misfit := _misfit(layer, known[layer.name])):
                raise ValueError(misfit)
        if not any(layer.name in known for layer in of_component):
            raise ValueError(
                f"it fits no layer of the {component}, so it was made for another kind of checkpoint: "
                f"{_first_of(of_component)}"
            )


def _misfit(layer: LoraLayer, weight: tuple[int, ...]) -> str:
    """How a LoRA's layer differs from the checkpoint's, whose weight has this shape; empty if it fits."""
    if layer.down[1:] == weight[1:] and layer.up[0] == weight[0]:
        return ""
    made_for = MADE_FOR.get(layer.down[1]) if layer.name.endswith("attn2_to_k") else None
    kind = f"it was made for {made_for}" if made_for else "it was made for another kind of checkpoint"
    return (
        f"{kind}: its layer {layer.name:.100} goes from {_sides(layer.down[1:])} to {layer.up[0]}, and the "
        f"checkpoint's from {_sides(weight[1:])} to {weight[0]}"
    )


def _first_of(changed: Sequence[LoraLayer]) -> str:
    return f"the first of its {counted(len(changed), 'layer')} is {changed[0].name:.100}"


def _sides(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "nothing"


def _notes(changed: Sequence[LoraLayer], layers: Components, *, has_dora_scales: bool) -> Iterator[str]:
    """What diffusers leaves out of a LoRA that it loads."""
    left_out = [layer for layer in changed if not _is_applied(layer, layers)]
    if left_out:
        yield (
            f"diffusers leaves out {len(left_out):,} of its {counted(len(changed), 'layer')}, which the "
            f"checkpoint does not have ({left_out[0].name:.100})"
        )
    if has_dora_scales:
        yield "diffusers leaves out its DoRA scales, and applies it as a plain LoRA"


def _is_applied(layer: LoraLayer, layers: Components) -> bool:
    if layer.component not in layers:
        return False
    known = layers[layer.component]
    return known is None or layer.name in known

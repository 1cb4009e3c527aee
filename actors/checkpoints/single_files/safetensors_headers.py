"""The header of a safetensors file: names, types and shapes of its tensors, checked against its length."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO

MAX_HEADER_BYTES = 100_000_000
"""The longest header that the safetensors library itself reads (0.8)."""
LENGTH_BYTES = 8
"""The bytes before the header, with its length."""
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""How files of torch.save and of pickle begin. A length can begin so too, but not one that is too large."""
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
}
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
"""The types of weights from which diffusers can make those of a pipeline."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor, as a header describes it."""

    dtype: str
    """Its type under safetensors' name, such as F16."""
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return prod(self.shape) * _BITS[self.dtype] // 8


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def read_header(file: BinaryIO, size_bytes: int) -> Header:
    """The header of a file of this size; ValueError says what is wrong with the file.

    No tensor is read.
    """
    first_bytes = file.read(LENGTH_BYTES)
    length = int.from_bytes(first_bytes, "little")
    num_data_bytes = size_bytes - LENGTH_BYTES - length
    if num_data_bytes < 0 or length > MAX_HEADER_BYTES:
        if first_bytes.startswith(_PICKLE_STARTS):
            raise ValueError(
                "it is a pickle, whatever its name says, and pickles can run code; load it where you trust "
                "it, and save it with safetensors"
            )
        raise ValueError(
            "it does not begin with the header of a safetensors file, or is cut off in it; download it again"
        )
    return parse_header(file.read(length), num_data_bytes)


def parse_header(text: bytes, num_data_bytes: int) -> Header:
    """The header in this JSON text; ValueError if it does not describe exactly this many bytes of tensors."""
    try:
        entries = json.loads(text)
        metadata = entries.pop("__metadata__", {})
        spans = sorted((*entry["data_offsets"], name) for name, entry in entries.items())
        tensors = {name: _tensor(entries[name]) for *_, name in spans}
        if not all(isinstance(value, str) for value in metadata.values()):
            raise TypeError("metadata that is not text")
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"its header is not that of a safetensors file ({error!r:.100})") from error
    position = 0
    for begin, end, name in spans:
        size_bytes = tensors[name].size_bytes
        if begin != position or end - begin != size_bytes:
            raise ValueError(
                f"its header gives {name:.100} the bytes {begin} to {end}, where {size_bytes} bytes from "
                f"{position} on are its own"
            )
        position = end
    if position != num_data_bytes:
        raise ValueError(
            f"its header describes {position:,} bytes of tensors, but the file has {num_data_bytes:,}: it is "
            "cut off or damaged; download it again"
        )
    return Header(tensors, metadata)


def refuse_whole_numbers(tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError for the first weight or bias that is not in floating point.

    Such weights are quantised: they mean nothing without their scales, which diffusers does not read. Other
    tensors may be whole numbers, such as the positions of a text encoder and the alphas of a LoRA.
    """
    for name, tensor in tensors.items():
        if name.endswith(("weight", "bias")) and tensor.dtype not in _FLOATS:
            raise ValueError(
                f"its tensor {name:.100} has the type {tensor.dtype}; weights must be floating-point "
                "numbers, such as F16. Name the file that this one was quantised from, or save it in float16"
            )


def _tensor(entry: Mapping[str, Any]) -> Tensor:
    shape, dtype = tuple(entry["shape"]), entry["dtype"]
    if dtype not in _BITS or not all(type(side) is int and side >= 0 for side in shape):
        raise TypeError(f"a tensor of type {dtype!r:.20} and shape {shape!r:.60}")
    return Tensor(dtype, shape)

"""The kinds of adapters: a new one is one more file in this folder and one more entry here."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from actors.inputs.input_file import RowBatch
from actors.rows.adapters.control_checks import refused_controls, refused_later_controls, rows_with_controls
from actors.rows.adapters.embedding_checks import refused_embeddings, rows_with_embeddings
from actors.rows.adapters.ip_adapter_checks import (
    refused_ip_adapters,
    refused_later_ip_adapters,
    rows_with_ip_adapters,
)
from actors.rows.adapters.lora_checks import refused_loras, rows_with_loras
from actors.rows.routing import ResolvedRoute
from actors.rows.row_values import CodedValues, RowMask, Violation, coded_values
from schemas.systems.schedulers import shown

AdapterName = tuple[str, str, str]
"""(kind, model, name) of an adapter of the spec."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """A kind of adapters, and what rows say of it."""

    name: str
    fields: tuple[str, ...]
    """The parameters in which rows name such adapters, of the systems that take this kind; empty: rows name
    them in their texts."""
    refused: Callable[[RowBatch, ResolvedRoute], Iterator[Violation]]
    """The violations that rows commit whose adapters cannot be applied."""
    rows_with: Callable[[RowBatch, ResolvedRoute, RowMask], Counter[tuple[str, str]]]
    """The number of selected rows that each adapter is applied to, by model and adapter."""


_NAME_NONE = ("", "{}", "[]")
"""The texts with which a row names no adapter."""
_KINDS = (
    _Kind(name="LoRA", fields=("loras",), refused=refused_loras, rows_with=rows_with_loras),
    _Kind(
        name="ControlNet",
        fields=("controlnet", "controls"),
        refused=refused_controls,
        rows_with=rows_with_controls,
    ),
    _Kind(name="embedding", fields=(), refused=refused_embeddings, rows_with=rows_with_embeddings),
    _Kind(
        name="IP-Adapter",
        fields=("ip_adapter",),
        refused=refused_ip_adapters,
        rows_with=rows_with_ip_adapters,
    ),
)


def refused_adapters(batch: RowBatch, route: ResolvedRoute) -> Iterator[Violation]:
    """The violations that rows commit whose adapters cannot be applied."""
    for kind in _KINDS:
        if all(name in route.defaults for name in kind.fields):
            yield from kind.refused(batch, route)
        else:
            yield from _not_taken(kind, batch, route)
    yield from refused_later_controls(batch, route)
    yield from refused_later_ip_adapters(batch, route)


def _not_taken(kind: _Kind, batch: RowBatch, route: ResolvedRoute) -> Iterator[Violation]:
    """The violations of rows that name an adapter of a kind that their pipeline does not take."""
    for name in kind.fields:
        texts = coded_values(batch, route, name)
        named = np.array([(text or "").strip() not in _NAME_NONE for text in texts.values], dtype=bool)

        def describe(row: int, name: str = name, texts: CodedValues = texts) -> str:
            return (
                f"{name} is {shown(texts.values[texts.codes[row]])}, and {route.system.pipeline} takes no "
                f"{kind.name}s; leave {name} empty for this row"
            )

        yield named[texts.codes], "invalid_parameter", describe


def rows_with_adapters(batch: RowBatch, route: ResolvedRoute, selected: RowMask) -> Counter[AdapterName]:
    """The number of selected rows that each adapter is applied to. None of these rows breaks a rule."""
    counts: Counter[AdapterName] = Counter()
    for kind in _KINDS:
        for (model, name), num_rows in kind.rows_with(batch, route, selected).items():
            counts[kind.name, model, name] += num_rows
    return counts

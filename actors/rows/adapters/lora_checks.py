"""Whether each row's adapters are those of its model, with weights that are allowed."""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from actors.inputs.input_file import RowBatch
from actors.rows.routing import ResolvedRoute
from actors.rows.row_values import RowMask, Violation, coded_values
from schemas.systems.adapter_weights import NO_WEIGHTS, parse_weights, unknown_adapter
from schemas.systems.schedulers import parse_options, shown


def refused_loras(batch: RowBatch, route: ResolvedRoute) -> Iterator[Violation]:
    """The violations that rows commit whose LoRAs cannot be applied.

    Each distinct text is judged once, however many rows have it.
    """
    texts = coded_values(batch, route, "loras")
    for code, judge in (("invalid_parameter", _invalid_weights), ("unknown_lora", _unknown_loras)):
        problems = [judge(text, route) for text in texts.values]

        def describe(row: int, problems: list[str] = problems) -> str:
            problem: str = problems[texts.codes[row]]
            if texts.is_own(row):
                return problem
            return f"{problem}. The LoRAs come from the route; set loras to {{}} for a row without"

        refused = np.array([bool(problem) for problem in problems], dtype=bool)
        yield refused[texts.codes], code, describe


def rows_with_loras(batch: RowBatch, route: ResolvedRoute, selected: RowMask) -> Counter[tuple[str, str]]:
    """The number of selected rows that apply each LoRA, by model and LoRA, in any step of their route.

    The rows are those of the route, and none of them breaks a rule.
    """
    of_steps = {(step.model, name) for step in route.then for name in _names(step.defaults.get("loras"))}
    counts: Counter[tuple[str, str]] = Counter()
    if not route.loras and not of_steps:
        return counts
    texts = coded_values(batch, route, "loras")
    takes_loras = "loras" in route.defaults
    for text, num_rows in zip(
        texts.values, np.bincount(texts.codes[selected], minlength=len(texts.values)).tolist(), strict=True
    ):
        own = {(route.model, name) for name in _names(text)} if takes_loras and num_rows else set()
        counts.update(dict.fromkeys(own | of_steps, num_rows))
    return +counts


def _names(text: object) -> list[str]:
    return [] if text is None else [*parse_weights(str(text))]


def _invalid_weights(text: str | None, _: ResolvedRoute) -> str:
    """What is wrong with the weights in a text; empty if they can be applied."""
    try:
        parse_weights(text or "")
    except ValueError as error:
        return f"loras is {shown(text)}: {error}"
    return ""


def _unknown_loras(text: str | None, route: ResolvedRoute) -> str:
    """The first LoRA of a text that the row's model has not; empty if it has all, and for an invalid text.

    One with a weight of 0 counts: the name is wrong all the same.
    """
    try:
        names = [*parse_options(text or NO_WEIGHTS)]
    except ValueError:
        return ""
    problems = (unknown_adapter("LoRA", name, route.model, route.loras) for name in names)
    problem = next(filter(None, problems), "")
    return problem and f"{problem}. LoRAs are named in models.{route.model}.loras"

"""The learned tokens in the texts of rows, and whether diffusers would put all their vectors there."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.inputs.input_file import RowBatch
from actors.rows.routing import ResolvedRoute
from actors.rows.row_values import RowMask, Violation
from models.clip_tokenizer import as_tokenizers_read


def learned_tokens_in(texts: Iterable[str | None], tokens: Collection[str]) -> list[str]:
    """Those of the learned tokens that a tokenizer finds in any of the texts, in the order of `tokens`."""
    pattern = _pattern(tuple(tokens))
    present = {each for text in texts if text for each in pattern.findall(as_tokenizers_read(text))}
    return [token for token in tokens if as_tokenizers_read(token) in present]


@lru_cache(maxsize=64)
def _pattern(tokens: tuple[str, ...]) -> re.Pattern[str]:
    """The regular expression of the tokens. Where several begin, the longest is found."""
    longest_first = sorted(map(as_tokenizers_read, tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)))


def refused_embeddings(batch: RowBatch, route: ResolvedRoute) -> Iterator[Violation]:
    """The violations of rows with learned tokens that a step of their route does not read as meant."""
    for number, step in enumerate(route.steps, 1):
        who = f"step {number} ({step.system.task}): " if route.then else ""
        problems = {
            row: who + problem
            for row, tokens in _tokens_by_text(batch, step)
            if (problem := _problem(tokens, step))
        }
        refused = np.zeros(batch.num_rows, dtype=bool)
        refused[[*problems]] = True
        yield refused, "invalid_prompt", problems.__getitem__


def _problem(tokens: Sequence[str], step: ResolvedRoute) -> str:
    """What is wrong with the tokens of a text; empty if nothing is."""
    if not step.system.takes_embeddings:
        return (
            f"the text has the learned token {tokens[0]}, and diffusers' pipeline for {step.system.task} "
            "reads none; leave it out for this row"
        )
    read = {token: as_tokenizers_read(token) for token in tokens}
    for inner in tokens:
        for outer in tokens:
            if step.embeddings[inner].num_vectors > 1 and inner != outer and read[inner] in read[outer]:
                # diffusers 0.42.1 replaces one token after the other, in no certain order.
                return (
                    f"the text has the learned tokens {inner} and {outer}, and diffusers would put the "
                    f"vectors of {inner} into {outer} too; use one of them, or rename one"
                )
    return ""


def rows_with_embeddings(
    batch: RowBatch, route: ResolvedRoute, selected: RowMask
) -> Counter[tuple[str, str]]:
    """The number of selected rows whose texts have each learned token, by model and token, in any step."""
    tokens_by_row: dict[int, set[tuple[str, str]]] = {}
    for step in route.steps:
        for row, tokens in _tokens_by_text(batch, step):
            if selected[row]:
                tokens_by_row.setdefault(row, set()).update((step.model, token) for token in tokens)
    return Counter(pair for pairs in tokens_by_row.values() for pair in pairs)


def _tokens_by_text(batch: RowBatch, step: ResolvedRoute) -> Iterator[tuple[int, list[str]]]:
    """(row, learned tokens) for each text of the step that has such tokens. The batch must have texts."""
    if not step.embeddings:
        return
    pattern = _pattern(tuple(step.embeddings)).pattern
    for field in step.system.texts:
        column = batch.fields.get(field)
        if column is None:
            continue
        # Most texts may have none, and Python is slow.
        read = pc.utf8_lower(pc.utf8_normalize(column, form="NFC"))
        rows = np.flatnonzero(pc.match_substring_regex(read, pattern).fill_null(False))
        for row, text in zip(rows.tolist(), column.take(pa.array(rows)).to_pylist(), strict=True):
            tokens = learned_tokens_in([text], step.embeddings)
            if tokens:
                yield row, tokens

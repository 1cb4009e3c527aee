"""Members of diffusers' pipeline classes that are replaced, because they cost time or warn."""

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch

_spelt_out: WeakKeyDictionary[Any, tuple[int, Mapping[str, str]]] = WeakKeyDictionary()
"""By tokenizer: the number of its tokens when it was asked for learned ones, and these (`_long_tokens`)."""


def with_overrides(cls: Any, device: torch.device) -> Any:
    """A subclass of the pipeline class that works around three faults of diffusers 0.42.1.

    - `_execution_device` and `device` walk through every module's hooks each time a pipeline asks for its
      device. For a small model that costs as much as all scheduler steps of a call. Here they are constants.
    - `maybe_convert_prompt` lists all learned tokens again for each token of each prompt: 20 ms a prompt
      with ten of them.
    - `upcast_vae` warns that it is deprecated. It is replaced, since float32_vae.py has done its work.
    """
    members = {
        "_execution_device": device,
        "device": device,
        "upcast_vae": _keep_dtype,
        "maybe_convert_prompt": _converted_prompt,
    }
    return type(cls.__name__, (cls,), members)


def with_all_vectors(tokenizer: Any, text: str) -> str:
    """The text with a token for each vector of its learned tokens: `<cat>` becomes `<cat> <cat>_1`.

    It is the one that diffusers encodes. A text in which one learned token is a part of another is refused
    before: diffusers replaces them in the order of a set.
    """
    vectors_of = _long_tokens(tokenizer)
    if not any(token in text for token in vectors_of):
        return text
    tokens = {*tokenizer.tokenize(text)}
    for token, vectors in vectors_of.items():
        if token in tokens:
            text = text.replace(token, vectors)
    return text


def _long_tokens(tokenizer: Any) -> Mapping[str, str]:
    """The learned tokens of several vectors, each with the tokens of all of them.

    Textual inversion adds `<cat>_1`, `<cat>_2` and so on for such a token `<cat>`.
    """
    num_tokens, vectors_of = _spelt_out.get(tokenizer, (0, {}))
    if num_tokens != len(tokenizer):
        added = tokenizer.added_tokens_encoder
        vectors_of = {token: _all_of(token, added) for token in added if f"{token}_1" in added}
        _spelt_out[tokenizer] = len(tokenizer), vectors_of
    return vectors_of


def _all_of(token: str, added: Mapping[str, int]) -> str:
    tokens = [token]
    while (following := f"{token}_{len(tokens)}") in added:
        tokens.append(following)
    return " ".join(tokens)


def _converted_prompt(_: Any, prompt: Any, tokenizer: Any) -> Any:
    """Replaces `maybe_convert_prompt`."""
    if isinstance(prompt, list):
        return [with_all_vectors(tokenizer, text) for text in prompt]
    return with_all_vectors(tokenizer, prompt)


def _keep_dtype(_: Any) -> None:
    """Replaces `upcast_vae`."""

"""CLIP's tokenizer as files, made from the vocabulary that comes with darkroom."""

import gzip
import json
import unicodedata
from pathlib import Path

import models

NUM_TOKENS = 49_408
"""The size of CLIP's vocabulary."""
MAX_TOKENS = 77
"""The longest text, in tokens, with its start and its end."""
START, END = "<|startoftext|>", "<|endoftext|>"
_MERGES = Path(models.__file__).parent / "clip_vocabulary" / "merges.txt.gz"


def write_tokenizer(folder: Path, pad_token: str) -> None:
    """Write the files that transformers' CLIPTokenizer reads to a folder, which must not exist.

    `pad_token`: END for the encoders of OpenAI's CLIP, "!" for those of OpenCLIP.
    """
    merges = _merges()
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad_token}
    config = {
        **special,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": MAX_TOKENS,
        "tokenizer_class": "CLIPTokenizer",
    }
    vocabulary = {token: number for number, token in enumerate(clip_tokens())}
    folder.mkdir(parents=True)
    (folder / "merges.txt").write_bytes(merges)
    for name, content in {
        "vocab.json": vocabulary,
        "special_tokens_map.json": special,
        "tokenizer_config.json": config,
    }.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def as_tokenizers_read(text: str) -> str:
    """The text with its letters as CLIP's tokenizers compare them with those of tokens that were added."""
    return unicodedata.normalize("NFC", text).lower()


def _merges() -> bytes:
    return gzip.decompress(_MERGES.read_bytes())


def clip_tokens() -> list[str]:
    """CLIP's tokens in the order of their numbers: bytes, bytes that end a word, pairs, and two signs."""
    letters = _letters_of_bytes()
    pairs = ["".join(line.split()) for line in _merges().decode().splitlines()[1:]]
    return [*letters, *(f"{letter}</w>" for letter in letters), *pairs, START, END]


def _letters_of_bytes() -> list[str]:
    """A letter for each byte: itself if it can be printed, or else one from U+0100 on.

    They are in the order of GPT-2's `bytes_to_unicode`, from which CLIP has them: printable bytes first.
    """
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = 256 - len(printable)
    return [chr(code) for code in [*printable, *range(256, 256 + others)]]

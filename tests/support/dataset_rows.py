"""The rows of an output as Hugging Face `datasets` opens it, printed as JSON.

It runs as a script of its own, because the Python that runs it may have another `datasets` than the tests
have, and no darkroom.
"""

import hashlib
import json
import sys
import tempfile
from typing import Any

WAYS = ("folder", "streamed folder", "files", "streamed files")
"""How an output is opened: by its folder's name alone, or by the names of its parts."""


def plain(value: Any) -> Any:
    """The value as JSON can hold it; an image by its mode, its size and its pixels."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    if hasattr(value, "tobytes"):
        return ["image", value.mode, *value.size, hashlib.sha256(value.tobytes()).hexdigest()]
    return value if value is None or isinstance(value, str | int | float) else repr(value)


def opened_rows(folder: str, way: str) -> list[Any]:
    """The rows of the output in this folder, opened in one of the WAYS."""
    from datasets import (
        load_dataset,
    )  # deferred: it takes seconds, and the tests' own Python needs none of it

    files = {} if way.endswith("folder") else {"data_files": f"{folder}/data/*.parquet"}
    with tempfile.TemporaryDirectory() as cache:
        rows = load_dataset(
            "parquet" if files else folder,
            split="train",
            cache_dir=cache,
            streaming=way.startswith("streamed"),
            **files,
        )
        return [plain(row) for row in rows]


if __name__ == "__main__":
    json.dump({way: opened_rows(sys.argv[1], way) for way in WAYS}, sys.stdout)

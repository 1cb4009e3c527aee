"""The Hugging Face Hub: where its files are on this machine, and requests that outlast its troubles."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx2
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError

from actors.storage.retries import repeat
from schemas.errors import SpecError, StorageError

HUB_ERRORS = (OSError, httpx2.HTTPError)
"""The errors that a request to the Hub can raise (huggingface_hub 2.4)."""
_TRANSIENT_STATUSES = {408, 425, 429}

T = TypeVar("T")


def ask_hub(ask: Callable[[], T], repository: str, deadline_s: float) -> T:
    """What `ask` returns. While the Hub is in trouble it is asked again, until `deadline_s` has passed.

    Then StorageError. Another error, such as that of a repository that does not exist, is raised at once.
    """
    try:
        return repeat(ask, repository, trouble_of=trouble_of, deadline_s=deadline_s)
    except (*HUB_ERRORS, SpecError) as error:
        if trouble := trouble_of(error):
            raise StorageError(
                f"{repository} could not be downloaded within {deadline_s:g} s: {trouble}. Check that the "
                "Hub and the network are up, then run again to resume"
            ) from error
        raise


def trouble_of(error: BaseException | None) -> str:
    """What is wrong with the Hub or the way to it, in one line; empty for an error that will not pass."""
    # diffusers and huggingface_hub say of most errors that files are not in the cache; the cause tells why.
    while error is not None:
        if isinstance(error, HfHubHTTPError):
            status = error.response.status_code
            return first_line(error) if status >= 500 or status in _TRANSIENT_STATUSES else ""
        if isinstance(error, httpx2.TransportError):
            return f"it cannot be reached ({first_line(error)})"
        error = error.__cause__ or error.__context__
    return ""


def hub_folder(repository: str) -> Path:
    """The folder of this machine's cache that has, or will have, the files of this repository."""
    return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"


def first_line(error: Exception) -> str:
    """The first line of its message, or its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

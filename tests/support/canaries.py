"""Fake secrets in the environment variables that the SDKs read, and the search for leaks of them."""

from collections.abc import Mapping

CANARIES = {
    "AWS_ACCESS_KEY_ID": "canary-of-the-key-id",
    "AWS_SECRET_ACCESS_KEY": "canary/of/the+secret",
    "AWS_SESSION_TOKEN": "canary-of-the-session",
    "HF_TOKEN": "hf_canary",
}


def leaks(texts: Mapping[str, bytes]) -> list[str]:
    """The names of the texts that contain a fake secret."""
    return [name for name, text in texts.items() if b"canary" in text]

"""Secrets planted in the environment, where the SDKs look for them, and the search for them."""

from collections.abc import Mapping

CANARIES = {
    "AWS_ACCESS_KEY_ID": "canary-of-the-key-id",
    "AWS_SECRET_ACCESS_KEY": "canary/of/the+secret",
    "AWS_SESSION_TOKEN": "canary-of-the-session",
    "HF_TOKEN": "hf_canary",
}


def leaks(found: Mapping[str, bytes]) -> list[str]:
    """Names of the places where one stands."""
    return [place for place, data in found.items() if b"canary" in data]

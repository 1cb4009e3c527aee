"""Whether the Hugging Face Hub can be reached, and the models of a spec with it."""

import logging
from collections.abc import Callable, Iterator

import httpx2
from huggingface_hub import constants, get_session, get_token

from actors.checkpoints.hub import HUB_ERRORS, first_line
from actors.checkpoints.model_cards import read_card
from jobs.checkup.finding import Finding, ok, problem, warning
from models.demo_cache import SCHEME
from schemas.errors import DarkroomError
from schemas.spec.job_spec import JobSpec, ModelSpec
from schemas.systems.model_card import ModelCard

ANSWERS_WITHIN_S = 5.0


def reach_hub() -> str:
    """Why the Hub cannot be reached; empty if it answers."""
    try:
        get_session().head(constants.ENDPOINT, timeout=ANSWERS_WITHIN_S)
    except (*HUB_ERRORS, httpx2.InvalidURL) as error:
        return first_line(error)
    return ""


def check_hub(
    reach: Callable[[], str] = reach_hub,
    is_offline: bool = constants.HF_HUB_OFFLINE,
    token: Callable[[], str | None] = get_token,
) -> Iterator[Finding]:
    """The Hub's endpoint and the token for gated models."""
    if is_offline:
        yield ok("HF_HUB_OFFLINE is set: checkpoints come from this machine's cache alone")
        return
    if trouble := reach():
        yield warning(
            f"{constants.ENDPOINT} cannot be reached ({trouble}): only checkpoints that are here already can "
            "be used; look at the network, HTTPS_PROXY and HF_ENDPOINT, or set HF_HUB_OFFLINE=1"
        )
    else:
        yield ok(f"{constants.ENDPOINT} answers")
    if token():
        yield ok("a token of the Hub is set, for gated and private models")
    else:
        yield ok("no token of the Hub: gated and private models need `hf auth login` or HF_TOKEN")


def check_models(spec: JobSpec, read: Callable[[str, ModelSpec], ModelCard] = read_card) -> Iterator[Finding]:
    """Each model of the spec, as its files tell; demos are built by the run that needs them."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # What it would warn of, a finding says.
    for name, model in spec.models.items():
        if model.checkpoint.startswith(SCHEME):
            continue
        try:
            card = read(name, model)
        except DarkroomError as error:
            yield problem(str(error))
        else:
            yield ok(f"models.{name}: {model.checkpoint} is here or can be downloaded (family {card.family})")

"""Facts about what is taken for a key or token, and what is not."""

import string

import pytest

from schemas.spec.secret_forms import has_secret_form

SIGNS = (string.ascii_letters + string.digits) * 4
HEX = "0123456789abcdef" * 8


def signs(number: int) -> str:
    """As many letters and digits."""
    return SIGNS[:number]


@pytest.mark.parametrize(
    "token",
    [
        "AKIA" + "Q2W3E4R5" * 2,
        "ASIA" + "Q2W3E4R5" * 2,
        f"AccountName=rows;AccountKey={signs(86)}==",
        f"AIza{signs(33)}-_",
        f"GOCSPX-{signs(28)}",
        f"hf_{signs(34)}",
        f"api_org_{signs(34)}",
        *(f"gh{kind}_{signs(36)}" for kind in "oprsu"),
        f"github_pat_{signs(22)}_{signs(59)}",
        f"github_pat_{signs(22)}",
        f"github_pat_{signs(82)}",
        f"glpat-{signs(20)}",
        f"sk-{signs(48)}",
        f"sk-proj-{signs(40)}_{signs(40)}",
        f"sk-svcacct-{signs(74)}",
        f"sk-ant-api03-{signs(93)}AA",
        f"xoxb-123456789012-1234567890123-{signs(24)}",
        f"xoxe-1-{signs(100)}",
        f"xapp-1-A0123456789-1234567890123-{HEX[:64]}",
        f"sk_live_{signs(24)}",
        f"rk_test_{signs(24)}",
        f"npm_{signs(36)}",
        f"pypi-AgEIcHlwaS5vcmc{signs(100)}",
        f"eyJ{signs(33)}.eyJ{signs(80)}.{signs(43)}",
        "-----BEGIN OPENSSH PRIVATE KEY-----",
    ],
)
def test_a_token_is_known_by_its_form(token: str) -> None:
    """Alone, and as a part of a path."""
    assert has_secret_form(token)
    assert has_secret_form(f"s3://bucket/{token}/rows")


@pytest.mark.parametrize(
    "text",
    [
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "DPMSolverMultistepScheduler",
        HEX[:32],
        HEX[:40],
        HEX[:64],
        f"sk-{HEX[:32]}",
        f"sk-{HEX[:40]}",
        f"sk-{HEX[:64]}",
        "sk-project-of-landscapes-in-slovakia-and-their-many-castles",
        "task-" + signs(48),
        "sk-proj-2026",
        "github_pat_rotation_and_other_words_of_documentation_in_one_long_name",
        "hf_datasets_of_landscapes_and_their_captions",
        "ghp_and_other_prefixes_of_tokens_explained",
        "xoxo-123456789-valentines-cards",
        "glpat-rows",
        "s3://bucket/out/AKIAN/2026-11-26T12:00:00",
        "eyJust-a-folder.eyJ",
        "npm_packages/" + HEX[:40],
        "rows-" + "a" * 500 + ".parquet",
        "-----BEGIN CERTIFICATE-----",
        "one_eyJ" * 20_000,
    ],
)
def test_words_paths_and_hashes_are_no_tokens(text: str) -> None:
    """However long, and also where they begin as one does."""
    assert not has_secret_form(text)

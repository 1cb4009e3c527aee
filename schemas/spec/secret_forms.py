"""The forms of secret keys and tokens: forms that no word, path, hash or commit has."""

import re

_FORMS = (
    r"(?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Za-z])",  # AWS
    r"AccountKey=[A-Za-z0-9+/]{40}",  # Azure
    r"AIza[A-Za-z0-9_-]{35}",  # Google
    r"GOCSPX-[A-Za-z0-9_-]{28}",
    r"(?:hf|api_org)_[A-Za-z0-9]{30}",  # Hugging Face
    r"gh[oprsu]_[A-Za-z0-9]{30}",  # GitHub
    r"github_pat_[A-Za-z0-9]{20}",
    r"glpat-[A-Za-z0-9_-]{20}",  # GitLab
    r"sk-(?:proj|svcacct|admin|ant-[a-z]+[0-9]+)-[A-Za-z0-9_-]{40}",  # OpenAI, Anthropic
    r"sk-[A-Za-z0-9]{48}(?![A-Za-z0-9])",
    r"xox[abeprs]-[0-9]+-[A-Za-z0-9-]{10}",  # Slack
    r"xapp-[0-9]-[A-Z0-9]+-[0-9]+-[0-9a-f]{10}",
    r"[rs]k_(?:live|test)_[A-Za-z0-9]{16}",  # Stripe
    r"npm_[A-Za-z0-9]{36}",
    r"pypi-AgE[A-Za-z0-9_-]{40}",
    # JSON Web Tokens. The match begins only where a word begins: "_eyJ_eyJ_..." would be read anew from each.
    r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.",
)
_SECRET = re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(_FORMS)})|-----BEGIN [A-Z ]*PRIVATE KEY")


def has_secret_form(text: str) -> bool:
    """Whether the text contains a key or token of one of these forms."""
    return _SECRET.search(text) is not None

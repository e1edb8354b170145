"""The last look at a path before it leaves for the real service. It trusts nothing that `paths` and `allowlist` found.

It shares no code and no table with them, so that one mistake is not enough.
"""

from collections.abc import Collection
from urllib.parse import unquote

_DECODED = 3
_NEVER = ("api/token", "iam/info", "iam/security-credentials", "%", "\\", ";", "?", "#", "//", "/.")
_SECRETS = (
    "iam",
    "identity-credentials",
    "security-credentials",
    "user-data",
    "managed-ssh",
    "pkcs7",
    "signature",
    "rsa2048",
    "dsa2048",
)


def may_leave(path: str, named: Collection[str] = ()) -> bool:
    """Whether `path` (below the version) may be asked of the real service.

    However forgiving that server is (any case, decoded three times), the path must hold no word of the node's
    identity and secrets but those that one of `named`, the patterns of `--metadata-allow`, writes out.
    """
    text = f"/{path}"
    secrets = [word for word in _SECRETS if not any(word in pattern.lower() for pattern in named)]
    for _ in range(1 + _DECODED):
        text = text.lower()
        if any(part in text for part in _NEVER) or any(word in text for word in secrets):
            return False
        text = unquote(text)
    return text.isascii() and text.isprintable() and " " not in text

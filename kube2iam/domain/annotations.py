"""What the rules that read annotations share."""

import json

import re2


class InvalidAnnotationError(ValueError):
    """An annotation that STS would refuse. The message is a sentence that names it and says how to mend it."""


def json_texts(text: str) -> tuple[str, ...] | None:
    """The texts in a JSON array, or None where `text` is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        return None
    return tuple(found)


def glob(pattern: str) -> str:
    """The regular expression of `pattern`, in which `*` stands for any run."""
    return ".*".join(re2.escape(part) for part in pattern.split("*"))


def shorten(text: str, limit: int = 100) -> str:
    """`text` in quotation marks on one line, for a message."""
    return repr(text if len(text) <= limit else f"{text[:limit]}...")

"""What the rules that read annotations share."""

import json


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


class Glob:
    """A pattern in which `*` stands for any run of characters. Linear, whatever is in it."""

    __slots__ = ("_first", "_others")

    def __init__(self, pattern: str) -> None:
        self._first, *others = pattern.split("*")
        self._others = [*filter(None, others[:-1]), *others[-1:]]  # without what is between stars side by side

    def fullmatch(self, text: str) -> bool:
        """Whether the pattern is the whole of `text`."""
        if not self._others:
            return text == self._first
        if not text.startswith(self._first):
            return False
        at = len(self._first)
        for part in self._others[:-1]:
            found = text.find(part, at)
            if found < 0:
                return False
            at = found + len(part)
        last = self._others[-1]
        return len(text) - at >= len(last) and text.endswith(last)


def shorten(text: str, limit: int = 100) -> str:
    """`text` in quotation marks on one line, for a message."""
    return repr(text if len(text) <= limit else f"{text[:limit]}...")

"""Which roles a namespace allows: its annotation, a JSON array of names, ARNs or patterns.

Both formats match the whole role ARN, in a linear-time engine and within limits, so that no annotation can stall the
agent.
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

import re2

from kube2iam.domain.annotations import glob, json_texts
from kube2iam.domain.arn import BaseArn, RoleArn

_MOST_ENTRIES = 1000
_MOST_CHARACTERS = 8192
"""Of all regular expressions of one annotation: what compiling them may take."""
_MOST_INSTRUCTIONS = 10_000
"""Of all compiled regular expressions of one annotation: what matching them may take."""
_MOST_MEMORY = 1 << 18
"""Bytes, of one compiled expression."""
_EXPECTED = 'it is not a JSON array of texts, such as ["app", "team/*"]'


class PatternFormat(StrEnum):
    """How a namespace writes what it allows: `glob` (`*` stands for any run) or `regexp` (RE2 syntax)."""

    GLOB = "glob"
    REGEXP = "regexp"


class Enforcement(StrEnum):
    """What restrictions do: nothing, decide, or only say what they would decide."""

    OFF = "off"
    ON = "on"
    REPORT_ONLY = "report-only"


class UnreadableAnnotationError(ValueError):
    """The annotation allows nothing because it can't be read; the message says why."""


@dataclass(frozen=True, slots=True)
class Restrictions:
    """The rule of `--namespace-restrictions`."""

    enforcement: Enforcement = Enforcement.OFF
    annotation: str = "iam.amazonaws.com/allowed-roles"
    format: PatternFormat = PatternFormat.GLOB

    def allows(self, text: str | None, arn: RoleArn, base: BaseArn | None) -> bool:
        """Whether the annotation's `text` allows `arn`; raises UnreadableAnnotationError."""
        return any(pattern.fullmatch(str(arn)) for pattern in _patterns(text or "[]", self.format, base))


@lru_cache(maxsize=128)
def _patterns(text: str, pattern_format: PatternFormat, base: BaseArn | None) -> tuple[Any, ...]:
    entries = json_texts(text)
    if entries is None:
        raise UnreadableAnnotationError(_EXPECTED)
    if len(entries) > _MOST_ENTRIES:
        raise UnreadableAnnotationError(f"it has more than {_MOST_ENTRIES} entries")
    if pattern_format is PatternFormat.REGEXP and sum(map(len, entries)) > _MOST_CHARACTERS:
        raise UnreadableAnnotationError(f"its regular expressions have more than {_MOST_CHARACTERS} characters")
    patterns, size = [], 0
    for entry in entries:
        patterns.append(_compile(entry, pattern_format, base))
        size += patterns[-1].programsize
        if pattern_format is PatternFormat.REGEXP and size > _MOST_INSTRUCTIONS:
            raise UnreadableAnnotationError("its regular expressions are too complex; write fewer or simpler ones")
    return tuple(patterns)


def _compile(entry: str, pattern_format: PatternFormat, base: BaseArn | None) -> Any:
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MOST_MEMORY
    try:
        if pattern_format is PatternFormat.GLOB:
            return re2.compile(_glob(entry, base), options)
        re2.compile(entry, options)  # alone too: `x)|(.*` would be valid inside the group and escape from it
        return re2.compile(_whole(entry, base), options)
    except (re2.error, UnicodeEncodeError):
        raise UnreadableAnnotationError(
            f"{entry!r} is not a regular expression in RE2 syntax, or too large a one"
        ) from None


def _glob(entry: str, base: BaseArn | None) -> str:
    return glob(entry if entry.lower().startswith("arn:") else f"{base or ''}{entry.removeprefix('/')}")


def _whole(entry: str, base: BaseArn | None) -> str:
    """The expression that a whole ARN must match: `entry` itself, or completed with the base ARN."""
    if entry.startswith(("arn:", "^arn:")):
        return entry
    inner = entry.removeprefix("^")
    if inner.endswith("$") and not inner.endswith("\\$"):
        inner = inner[:-1]
    # The group keeps an alternative from escaping the base: without it, `app|.*` would allow every account.
    return f"{re2.escape(str(base or ''))}(?:{inner})"

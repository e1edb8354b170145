"""Which roles a namespace allows: its annotation, a JSON array of names, ARNs or patterns.

Both formats match the whole role ARN, in linear time and within limits, so that no annotation can stall the agent.
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

import re2

from kube2iam.domain.annotations import Glob, json_texts, shorten
from kube2iam.domain.arn import BaseArn, RoleArn
from kube2iam.domain.pod import LONGEST_ANNOTATION

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
        patterns = _known_patterns(text or "[]", self.format, base)
        if isinstance(patterns, str):
            raise UnreadableAnnotationError(patterns)
        whole = str(arn)
        return any(pattern.fullmatch(whole) for pattern in patterns)


@lru_cache(maxsize=128)
def _known_patterns(text: str, pattern_format: PatternFormat, base: BaseArn | None) -> tuple[Any, ...] | str:
    """The patterns, or why there are none: that is remembered too."""
    try:
        return _patterns(text, pattern_format, base)
    except UnreadableAnnotationError as error:
        return str(error)


def _patterns(text: str, pattern_format: PatternFormat, base: BaseArn | None) -> tuple[Any, ...]:
    if len(text) > LONGEST_ANNOTATION:
        raise UnreadableAnnotationError(f"it has more than {LONGEST_ANNOTATION} characters")
    entries = json_texts(text)
    if entries is None:
        raise UnreadableAnnotationError(_EXPECTED)
    if len(entries) > _MOST_ENTRIES:
        raise UnreadableAnnotationError(f"it has more than {_MOST_ENTRIES} entries")
    if pattern_format is PatternFormat.GLOB:
        return tuple(_glob(entry, base) for entry in entries)
    if sum(map(len, entries)) > _MOST_CHARACTERS:
        raise UnreadableAnnotationError(f"its regular expressions have more than {_MOST_CHARACTERS} characters")
    patterns, size = [], 0
    for entry in entries:
        patterns.append(_compile(entry, base))
        size += patterns[-1].programsize
        if size > _MOST_INSTRUCTIONS:
            raise UnreadableAnnotationError("its regular expressions are too complex; write fewer or simpler ones")
    return tuple(patterns)


def _compile(entry: str, base: BaseArn | None) -> Any:
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MOST_MEMORY
    try:
        re2.compile(entry, options)  # alone too: `x)|(.*` would be valid inside the group and escape from it
        return re2.compile(_whole(entry, base), options)
    except (re2.error, UnicodeEncodeError):
        raise UnreadableAnnotationError(
            f"{shorten(entry)} is not a regular expression in RE2 syntax, or too large a one"
        ) from None


def _glob(entry: str, base: BaseArn | None) -> Glob:
    return Glob(entry if entry.lower().startswith("arn:") else f"{base or ''}{entry.removeprefix('/')}")


def _whole(entry: str, base: BaseArn | None) -> str:
    """The expression that a whole ARN must match: `entry` itself, or completed with the base ARN."""
    if entry.startswith(("arn:", "^arn:")):
        return entry
    inner = entry.removeprefix("^")
    if inner.endswith("$") and not inner.endswith("\\$"):
        inner = inner[:-1]
    # The group keeps an alternative from escaping the base: without it, `app|.*` would allow every account.
    return f"{re2.escape(str(base or ''))}(?:{inner})"

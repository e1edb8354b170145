"""Which roles a namespace allows: its annotation, a JSON array of names, ARNs or patterns.

Both formats match the whole role ARN, in a linear-time engine, so that no pattern can stall the agent.
"""

import json
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

import re2

from kube2iam.domain.arn import BaseArn, RoleArn

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


@lru_cache(maxsize=4096)
def _patterns(text: str, pattern_format: PatternFormat, base: BaseArn | None) -> tuple[Any, ...]:
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        raise UnreadableAnnotationError(_EXPECTED) from None
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise UnreadableAnnotationError(_EXPECTED)
    return tuple(_compile(entry, pattern_format, base) for entry in entries)


def _compile(entry: str, pattern_format: PatternFormat, base: BaseArn | None) -> Any:
    prefix = "" if base is None else str(base)
    if pattern_format is PatternFormat.GLOB:
        whole = entry if entry.lower().startswith("arn:") else prefix + entry.removeprefix("/")
        expression = ".*".join(re2.escape(part) for part in whole.split("*"))
    elif entry.startswith(("arn:", "^arn:")):
        expression = entry
    else:
        inner = entry.removeprefix("^")
        if inner.endswith("$") and not inner.endswith("\\$"):
            inner = inner[:-1]
        # The group keeps an alternative from escaping the base: without it, `app|.*` would allow every account.
        expression = f"{re2.escape(prefix)}(?:{inner})"
    options = re2.Options()
    options.log_errors = False
    try:
        if expression is not entry:
            re2.compile(entry if pattern_format is PatternFormat.REGEXP else expression, options)
        return re2.compile(expression, options)
    except (re2.error, UnicodeEncodeError):
        raise UnreadableAnnotationError(f"{entry!r} is not a regular expression in RE2 syntax") from None

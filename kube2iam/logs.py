"""How log lines are written: one event, one line, whatever is in it.

Fields come from `extra={"pod.name": ...}`. The text format is that of Go kube2iam (logrus).
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

from kube2iam.settings import Settings

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_OWN = "kube2iam"
_SDK = "botocore"
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._/@^+")
_RESERVED = frozenset(("level", "msg", "time"))
_LONGEST = 16_384
"""Characters of one field."""
_LEVELS = {"CRITICAL": "fatal"}


def configure(settings: Settings, stream: TextIO | None = None) -> None:
    """Send every log line to `stream` (stderr), as the flags say.

    Libraries are heard from warning on, also with --verbose: what botocore and urllib3 say at debug holds secrets. The
    SDK's warnings do too; it raises what they are about, and the agent says that in its own words.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines() if settings.log_format == "json" else TextLines())
    level = logging.DEBUG if settings.verbose else logging.getLevelNamesMapping()[settings.log_level.upper()]
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old.formatter, Lines)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(max(level, logging.WARNING))
    logging.getLogger(_OWN).setLevel(level)
    logging.getLogger(_SDK).setLevel(logging.CRITICAL)
    logging.captureWarnings(capture=True)


class Lines(logging.Formatter):
    """What both formats share."""

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        """What the line says, in order: time, level, msg, then the fields by name."""
        moment = datetime.fromtimestamp(record.created, UTC)
        said: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": _LEVELS.get(record.levelname, record.levelname.lower()),
            "msg": record.getMessage(),
        }
        extra = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.name != _OWN and not record.name.startswith(f"{_OWN}."):
            extra["logger"] = record.name
        if record.exc_info and record.exc_info[0]:
            extra["error"] = f"{record.exc_info[0].__name__}: {record.exc_info[1]}"
            extra["stack"] = self.formatException(record.exc_info)
        for key in sorted(extra):
            value = extra[key]
            if isinstance(value, str) and len(value) > _LONGEST:
                value = f"{value[:_LONGEST]}..."
            said[f"fields.{key}" if key in _RESERVED else key] = value
        return said


class TextLines(Lines):
    """`time="..." level=info msg="..." pod.name=web`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        return " ".join(f"{key}={_text(value)}" for key, value in self.fields(record).items())


class JsonLines(Lines):
    """A JSON object on each line, ASCII only."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        return json.dumps(self.fields(record), default=str)


def _text(value: Any) -> str:
    """A value as logrus writes it: bare if it is plain, else in quotation marks."""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    if text and _PLAIN.issuperset(text):
        return text
    return '"' + "".join(_escaped(char) for char in text) + '"'


def _escaped(char: str) -> str:
    if char in '"\\':
        return f"\\{char}"
    if char.isprintable():
        return char
    return json.dumps(char)[1:-1]

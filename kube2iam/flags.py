"""What a setting is, apart from its value: how it is written, checked, shown and explained.

`flag()` declares one as a field of a dataclass; `table()` reads the declarations back. The command line, the
environment, the help and docs/settings.md all come from that one table.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, Generic, TypeVar

from kube2iam import parse

T = TypeVar("T")

_METADATA = "kube2iam.flag"
_PREFIX = "KUBE2IAM_"
_YEAR = 365 * 86400.0
_ROLE_ARN = r"arn:aws(?:-[a-z0-9]+)*:iam::\d{12}:role"
_ANNOTATION = r"(?:[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9](?:[\w.-]{0,61}[A-Za-z0-9])?"
_INTERFACE = r'!?(?:[^\s/:!,+*"\\]{1,15}|[^\s/:!,+*"\\]{0,14}\+)'


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """A way to write a value."""

    word: str
    """Stands for the value in the help: `duration`."""
    allowed: str
    """What is allowed, to stand after the word `expected`."""
    parse: Callable[[str], T]
    """The value of a text, with every check that the value alone allows; raises ValueError (see kube2iam.parse)."""
    show: Callable[[T], str] = str
    """How the value is written in the help and in the docs."""
    bare: str = ""
    """The text that the flag means where no value is given with it; if empty, it needs one."""
    repeatable: bool = False
    """Whether each further use adds to the value, a tuple, instead of replacing it."""


@dataclass(frozen=True, slots=True)
class Flag:
    """One row of the table."""

    kind: Kind[Any]
    group: str
    help: str
    secret: bool
    environment: tuple[str, ...] = ()
    """The variables that are read where the flag is not given; the first that is set and not empty decides."""
    field: str = ""
    default: Any = None

    @property
    def name(self) -> str:
        """How it is written on the command line: `--app-port`."""
        return "--" + self.field.replace("_", "-")

    @property
    def shown_default(self) -> str:
        """The default as one would write it; empty where there is none."""
        return "" if self.default in (None, ()) else self.kind.show(self.default)


def flag(
    default: T,
    kind: Kind[T],
    *,
    group: str,
    help: str,  # noqa: A002 - the word for it
    secret: bool = False,
    also: Sequence[str] = (),
    environment: bool = True,
) -> T:
    """A field of a dataclass of settings. `also` are further environment variables; a `secret` stays out of repr."""
    row = Flag(kind, group, help, secret, (_PREFIX, *also) if environment else ())
    return field(default=default, repr=not secret, metadata={_METADATA: row})


def table(settings: type[Any]) -> tuple[Flag, ...]:
    """Every flag that the fields of `settings` declare, in their order."""
    rows = []
    for item in fields(settings):
        row: Flag = item.metadata[_METADATA]
        names = tuple(_PREFIX + item.name.upper() if name == _PREFIX else name for name in row.environment)
        rows.append(replace(row, field=item.name, default=item.default, environment=names))
    return tuple(rows)


def switch(*, group: str, help: str, default: bool = False, environment: bool = True) -> bool:  # noqa: A002
    """A flag that is on or off."""
    return flag(default, SWITCH, group=group, help=help, environment=environment)


def optional(kind: Kind[Any], empty: Any = "") -> Kind[Any]:
    """`kind`, or `empty` for an empty text."""

    def read(text: str) -> Any:
        return kind.parse(text) if text else empty

    def show(value: Any) -> str:
        return "" if value == empty else kind.show(value)

    return replace(kind, parse=read, show=show)


def pattern(word: str, allowed: str, expression: str) -> Kind[str]:
    """A text that is wholly one regular expression."""
    return Kind(word, allowed, partial(parse.matching, expression))


def choice(*values: str, bare: str = "", aliases: Mapping[str, str] | None = None) -> Kind[str]:
    """One of `values`, in any case. An alias is another spelling of one of them, which the help does not show."""
    meanings = {value: value for value in values} | dict(aliases or {})

    def read(text: str) -> str:
        try:
            return meanings[text.lower()]
        except KeyError:
            raise ValueError from None

    return Kind("|".join(values), _either(values), read, bare=bare)


def duration(at_least: float = 0.0, at_most: float = _YEAR, *, zero: bool = False) -> Kind[float]:
    """Seconds from `at_least` to `at_most`, or also 0 if `zero`."""

    def read(text: str) -> float:
        seconds = parse.duration(text)
        if not at_least <= seconds <= at_most and not (zero and not seconds):
            raise ValueError
        return seconds

    shortest, longest = parse.show_duration(at_least), parse.show_duration(min(at_most, _YEAR))
    bounds = "such as 90s, 1h30m or 500ms"
    if at_most < _YEAR:
        bounds = f"from {shortest} to {longest}"
    elif at_least:
        bounds = f"of {shortest} or more"
    allowed = f"a duration {bounds}" + (", or 0" if zero else "")
    return Kind("duration", allowed, read, parse.show_duration)


def number(at_least: int = 0, at_most: int | None = None, *, zero: bool = False) -> Kind[int]:
    """A whole number from `at_least` to `at_most`, or also 0 if `zero`."""

    def read(text: str) -> int:
        value = parse.whole_number(text)
        if (value < at_least or (at_most is not None and value > at_most)) and not (zero and not value):
            raise ValueError
        return value

    upper = "or more" if at_most is None else f"to {at_most}"
    allowed = f"a whole number, {at_least} {upper}" + (", or 0 for no limit" if zero else "")
    return Kind("number", allowed, read)


def template(names: Sequence[str]) -> Kind[str]:
    """A text for role session names with `{field}` in it."""
    shown = " ".join(f"{{{name}}}" for name in names)
    return Kind("template", f"letters, digits, +=,.@_- and {shown}", partial(parse.template, fields=names))


def _either(values: Sequence[str]) -> str:
    return f"{', '.join(values[:-1])} or {values[-1]}"


def _show_list(separator: str) -> Callable[[tuple[str, ...]], str]:
    return separator.join


def _show_switch(value: bool) -> str:  # noqa: FBT001 - a value to show
    return "true" if value else "false"


def _show_rate(value: float) -> str:
    return f"{value:g}"


def _printable(text: str) -> str:
    if not text.isprintable():
        raise parse.UnfitTextError("it has a line break or another control character")
    return text


def _base_arn(text: str) -> str:
    return parse.matching(rf"{_ROLE_ARN}(?:/[\w+=,.@-]+)*/?", text).rstrip("/") + "/"


def _token(text: str) -> str:
    """A bearer token; files and Secrets often end with a line feed that is not of it."""
    return parse.matching("[!-~]*", text.strip())


def _folder(text: str) -> str:
    if ".." in text.split("/"):
        raise ValueError
    return _printable(parse.matching(r"(?s)/.*", text))


def _interfaces(text: str) -> str:
    names = parse.listed(_INTERFACE, text)
    if not names:
        raise ValueError
    if "auto" in names and not all(name == "auto" or name.startswith("!") for name in names):
        raise parse.UnfitTextError("auto finds the interfaces itself")
    if "!+" in names:
        raise parse.UnfitTextError("!+ leaves none")
    return ",".join(names)


SWITCH = Kind("", "true or false", parse.boolean, _show_switch, bare="true")
TOKEN = Kind("token", "a bearer token: characters without space or control characters", _token)
FILE = Kind("file", "the path of a file", _printable)
FOLDER = Kind("folder", "the absolute path of a folder", _folder)
URL = Kind("url", "a URL such as https://10.0.0.1:6443", parse.server_url)
PORT = Kind("port", "a port from 1 to 65535", parse.port)
ENDPOINT = Kind("host[:port]", "an address or host name, with or without a port (80)", parse.endpoint)
ADDRESSES = Kind(
    "addresses",
    "an IPv4 address, an IPv6 address, or both with a comma between them",
    parse.addresses,
    _show_list(","),
)
INTERFACES = Kind(
    "interfaces",
    "names of interfaces between commas, + at the end for any that begins so, ! before what is left out; or auto",
    _interfaces,
)
NODE = pattern("name", "the name of a node", r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
ANNOTATION = pattern("annotation", "the name of an annotation such as iam.amazonaws.com/role", _ANNOTATION)
ANNOTATION_PREFIX = pattern(
    "prefix", "the beginning of an annotation's name such as example.com/tag.", r"(?:[a-z0-9][-a-z0-9.]*/)?[\w.-]{1,62}"
)
ROLE = pattern(
    "role",
    "a role's name, path and name, or ARN (arn:aws:iam::<12-digit account>:role/[path/]<name>)",
    rf"(?:{_ROLE_ARN}/(?:[!-~]{{1,510}}/)?|/?(?:[!-9;-~]{{1,510}}/)?)[\w+=,.@-]{{1,64}}",
)
ROLE_ARN = pattern(
    "arn",
    "a role's ARN, arn:aws:iam::<12-digit account>:role/[path/]<name>",
    rf"{_ROLE_ARN}/(?:[!-~]{{1,510}}/)?[\w+=,.@-]{{1,64}}",
)
BASE_ARN = Kind("arn", "arn:aws:iam::<12-digit account>:role/[path/], where aws may be another partition", _base_arn)
REGION = pattern(
    "region",
    "the name of a region such as eu-central-1",
    r"[a-z]{2,8}(?:-[a-z]{2,12}){1,3}-\d{1,2}",  # aws-global and its like stand for the global endpoint
)
CLUSTER = pattern(  # a tag's value; AWS keeps those that begin with aws: for itself
    "name", "1 to 256 letters, digits or _.:/=+@-, not aws: at the beginning", r"(?![Aa][Ww][Ss]:)[\w.:/=+@-]{1,256}"
)
TAG_KEYS = Kind(
    "keys",
    "at most 50 tag keys between commas",
    partial(parse.listed, r"[\w .:/=+@-]{1,128}"),
    _show_list(","),
    repeatable=True,
)
REGEXPS = Kind(
    "regexp",
    "a regular expression (RE2 syntax) for a whole path, such as meta-data/tags/instance/.*",
    parse.regexps,
    _show_list(" "),
    repeatable=True,
)
RATE = Kind("number", "a number, 0 for no limit", parse.decimal_number, _show_rate)

"""Texts that people write in flags, variables and annotations, turned into the values they mean.

Every function takes the text as it was given and raises ValueError for one that means nothing: an UnfitTextError where
there is more to say than that the text is not what was expected.
"""

import re
from collections.abc import Collection
from decimal import Decimal
from ipaddress import IPv6Address, ip_address
from string import Formatter
from urllib.parse import urlsplit

import re2

_UNITS = {
    "h": Decimal(3600),
    "m": Decimal(60),
    "s": Decimal(1),
    "ms": Decimal("1e-3"),
    "us": Decimal("1e-6"),
    "µs": Decimal("1e-6"),
    "μs": Decimal("1e-6"),
    "ns": Decimal("1e-9"),
}
_DURATION_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(h|ms|m|s|us|µs|μs|ns)", re.ASCII)
_LONGEST_DURATION_TEXT = 64
_HOST_NAME = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*", re.IGNORECASE
)
_ENDPOINT = re.compile(r"(?:\[([0-9A-Fa-f:]+)\]|([^:]+))(?::([0-9]+))?")
_PORT = re.compile(r"[0-9]{1,5}")
_HIGHEST_PORT = 65535
_MOST_DIGITS = 12


class UnfitTextError(ValueError):
    """A text that means nothing; the message is the reason, for people."""


def boolean(text: str) -> bool:
    """A Go boolean: https://pkg.go.dev/strconv#ParseBool."""
    if text in {"1", "t", "T", "true", "TRUE", "True"}:
        return True
    if text in {"0", "f", "F", "false", "FALSE", "False"}:
        return False
    raise ValueError


def duration(text: str) -> float:
    """Seconds of a Go duration that is not negative: https://pkg.go.dev/time#ParseDuration."""
    if text in {"0", "+0"}:
        return 0.0
    rest = text.removeprefix("+")
    if len(text) > _LONGEST_DURATION_TEXT or not rest:
        raise ValueError
    if re.fullmatch(r"[0-9.]+", rest):
        raise UnfitTextError(f"it has no unit; did you mean {rest}s")
    if rest.startswith("-"):
        raise UnfitTextError("it is negative")
    total = Decimal(0)
    while rest:
        part = _DURATION_PART.match(rest)
        if part is None:
            raise ValueError
        total += Decimal(part[1]) * _UNITS[part[2]]
        rest = rest[part.end() :]
    return float(total)


def show_duration(seconds: float) -> str:
    """The shortest Go duration for `seconds`, whole milliseconds at the finest: `1h30m`, `800ms`, `0`."""
    left = round(seconds * 1000)
    shown = ""
    for unit, size in (("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, left = divmod(left, size)
        shown += f"{count}{unit}" if count else ""
    return shown or "0"


def whole_number(text: str) -> int:
    """A decimal number without sign."""
    if not re.fullmatch(r"[0-9]+", text) or len(text) > _MOST_DIGITS:
        raise ValueError
    return int(text)


def decimal_number(text: str) -> float:
    """A decimal number without sign or exponent, with or without a fraction."""
    if not re.fullmatch(r"[0-9]+(?:\.[0-9]+)?", text) or len(text) > _MOST_DIGITS:
        raise ValueError
    return float(text)


def port(text: str) -> int:
    """A TCP port."""
    if not _PORT.fullmatch(text) or not 1 <= int(text) <= _HIGHEST_PORT:
        raise ValueError
    return int(text)


def address(text: str) -> str:
    """An IP address, compressed; IPv4-mapped IPv6 becomes IPv4."""
    try:
        found = ip_address(text)
    except ValueError:
        raise UnfitTextError(f"{text!r} is no address") from None
    if isinstance(found, IPv6Address) and found.ipv4_mapped:
        found = found.ipv4_mapped
    if found.is_unspecified or found.is_multicast:
        raise UnfitTextError(f"{text} is no single host's address")
    return str(found)


def addresses(text: str) -> tuple[str, ...]:
    """Addresses of one host, between commas: one of each family at most."""
    found = tuple(address(part) for part in _items(text, ","))
    families = [":" in one for one in found]
    if len(set(families)) != len(families):
        raise UnfitTextError("two addresses of the same family")
    return found


def endpoint(text: str) -> str:
    """`host:port` from an address or a host name with or without a port (80); IPv6 in brackets."""
    if "/" in text:
        raise UnfitTextError("leave out the scheme and the path")
    if _is_ipv6(text):
        text = f"[{text}]"
    found = _ENDPOINT.fullmatch(text)
    if found is None:
        raise ValueError
    bracketed, host, number = found.groups()
    if bracketed is None and not _HOST_NAME.fullmatch(host):
        raise ValueError
    return f"{host if bracketed is None else f'[{address(bracketed)}]'}:{port(number or '80')}"


def server_url(text: str) -> str:
    """An http or https URL without credentials, query or fragment; no slash at its end."""
    url = urlsplit(matching("[!-~]+", text))
    if url.scheme not in {"http", "https"} or not url.hostname:
        raise ValueError
    if url.username is not None or url.query or url.fragment:
        raise UnfitTextError("it may hold nothing but scheme, host, port and path")
    if url.port == 0:
        raise UnfitTextError("the port is 0")
    return text.rstrip("/")


def matching(pattern: str, text: str) -> str:
    """`text` itself if it is wholly `pattern` (ASCII)."""
    if not re.fullmatch(pattern, text, re.ASCII):
        raise ValueError
    return text


def regexps(text: str) -> tuple[str, ...]:
    """Regular expressions in RE2 syntax between white space, each of which compiles."""
    options = re2.Options()
    options.log_errors = False
    for pattern in text.split():
        try:
            re2.compile(pattern, options)
        except re2.error as error:
            reason = error.args[0]
            raise UnfitTextError(reason.decode() if isinstance(reason, bytes) else str(reason)) from None
    return tuple(text.split())


def listed(pattern: str, text: str) -> tuple[str, ...]:
    """The items between commas, each wholly `pattern` (ASCII)."""
    return tuple(matching(pattern, item) for item in _items(text, ","))


def template(text: str, fields: Collection[str]) -> str:
    """`text` if it is characters of a role session name with `{field}` between them."""
    try:
        parts = list(Formatter().parse(text))
    except ValueError as error:
        raise UnfitTextError(f"{error}".lower()) from None
    for literal, name, spec, conversion in parts:
        matching(r"[\w+=,.@-]*", literal)
        if name is not None and (name not in fields or spec or conversion):
            raise UnfitTextError(f"there is no field {{{name}}}")
    return text


def fields_of(text: str) -> frozenset[str]:
    """The names of a template's fields."""
    return frozenset(name for _, name, _, _ in Formatter().parse(text) if name)


def _items(text: str, separator: str) -> list[str]:
    return [item.strip() for item in text.split(separator) if item.strip()]


def _is_ipv6(text: str) -> bool:
    try:
        return isinstance(ip_address(text), IPv6Address)
    except ValueError:
        return False

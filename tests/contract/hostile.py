"""Hostile requests: the rows of hostile.tsv, and thousands of spellings made from a few paths that must not be had."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from random import Random
from urllib.parse import quote

from tests.fakes.imds import NODE_ROLE
from tests.fakes.pods_port import OTHER

HOST = "Host: 169.254.169.254"
_NAMES = {"@NODE": NODE_ROLE, "@POD": "pod-role", "@OTHER_POD_IP": OTHER, "@REAL_IMDS_TOKEN": "canary-upstream-token-0"}
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|([rnt]))")
_PLAIN = {"r": "\r", "n": "\n", "t": "\t"}


@dataclass(frozen=True, slots=True)
class Row:
    """A request on the wire and what may come of it, as hostile.tsv explains."""

    expected: str
    raw: bytes


def rows(other_token: str) -> list[Row]:
    """The rows of hostile.tsv. `other_token` is a session token of another pod."""
    lines = (Path(__file__).parent / "hostile.tsv").read_text().splitlines()
    return [_row(line, other_token) for line in lines if not line.startswith("#")]


def _row(line: str, other_token: str) -> Row:
    expected, text = line.split("\t")
    for name, value in {**_NAMES, "@OTHER_POD_TOKEN": other_token}.items():
        text = text.replace(name, value)
    text = _ESCAPE.sub(lambda found: _PLAIN[found[2]] if found[2] else chr(int(found[1], 16)), text)
    if expected == "R":
        return Row(expected, text.encode("latin-1"))
    first, *headers = text.split(" | ")
    return Row(expected, request(first, headers))


def request(first: str, headers: list[str]) -> bytes:
    """A whole request; Host is added where `headers` has none."""
    if not any(header.lower().startswith("host:") for header in headers):
        headers = [HOST, *headers]
    return "\r\n".join([f"{first} HTTP/1.1", *headers, "", ""]).encode("latin-1")


SECRETS = (
    "user-data",
    "meta-data/iam/info",
    "meta-data/iam/security-credentials/",
    f"meta-data/iam/security-credentials/{NODE_ROLE}",
    "meta-data/iam/security-credentials/neighbour-role",
    "meta-data/identity-credentials/ec2/info",
    "meta-data/identity-credentials/ec2/security-credentials/ec2-instance",
    "dynamic/instance-identity/pkcs7",
    "dynamic/instance-identity/signature",
    "dynamic/instance-identity/rsa2048",
    "meta-data/managed-ssh-keys/signer-cert",
    "meta-data/public-keys/0/openssh-key",
    "meta-data/tags/instance/Name",
    "api/token",
)
_VERSIONS = ("latest", "1.0", "2009-04-04", "2021-03-23", "LATEST", "2099-01-01", "v1", "", ".")
_HARMLESS = ("meta-data/placement", "meta-data/placement/region", "meta-data/network/interfaces/macs", "dynamic")
_SLASHES = ("//", "/./", "/x/../", "/%2f", "%2f", "%2F", "%252f", "\\", "/\\", "%5c", "%c0%af", "/;/", ";/", ";x=y/",
            "/%2e/", "/x/%2e%2e/", "/%20", "/\t", "/%00", "/%0d%0a", "\u2215", "\uff0f")  # fmt: skip
_BEFORE = ("", "/", "/.", "/..", "/%2e", "\\", "http://169.254.169.254", "http://169.254.169.254:80",
           "http://[fd00:ec2::254]", "http://evil.example", "//evil.example", "http://169.254.169.254@evil.example",
           "https://169.254.169.254", "http:/", "ftp://169.254.169.254", "/latest", "/latest/meta-data", "?",
           "#")  # fmt: skip
_AFTER = ("", "/", "//", "/.", "/..", "?", "?x", "?recursive=true", "#", "%", "%00", "%20", "%2f", "%23", "%3f", ";",
          ";x", ".", "..", "~", "\\", "\x00", "\t", "%0a", "&", "/../document", "*", "%25", "%252f")  # fmt: skip


def spellings() -> Iterator[str]:
    """Targets that some server somewhere reads as one of SECRETS."""
    for path in SECRETS:
        for version, before in product(_VERSIONS, _BEFORE):
            yield f"{before}/{version}/{path}"
        for after in _AFTER:
            yield f"/latest/{path}{after}"
        for slash in _SLASHES:
            yield f"/latest/{path.replace('/', slash)}"
            yield f"/latest{slash}{path}"
            yield f"/latest/{path.replace('/', slash, 1)}"
        for harmless, up in product(
            _HARMLESS, ("..", "%2e%2e", ".%2e", "..;", "%252e%252e", "..%00", "..%5c", "....", "%c0%ae%c0%ae")
        ):
            climb = "/".join([up] * (harmless.count("/") + 1))
            yield f"/latest/{harmless}/{climb}/{path}"
            yield f"/latest/{harmless}/{climb}\\{path}"
            yield f"/latest/{harmless}/{climb}%2f{quote(path, safe='')}"
        yield from _letters(path)


def _letters(path: str) -> Iterator[str]:
    for index, char in enumerate(path):
        before, after = path[:index], path[index + 1 :]
        for other in (f"%{ord(char):02x}", f"%25{ord(char):02x}", char.swapcase(), f"%u{ord(char):04x}", f"{char};"):
            yield f"/latest/{before}{other}{after}"
        if char.isascii() and char.isalpha():
            yield f"/latest/{before}{chr(ord(char) + 0xFEE0)}{after}"
    yield f"/latest/{path.upper()}"
    yield f"/latest/{path.title()}"
    yield f"/latest/{''.join(f'%{ord(char):02x}' for char in path)}"
    yield f"/latest/{''.join(f'%25{ord(char):02X}' for char in path)}"


_METHODS = (
    "HEAD",
    "POST",
    "PUT",
    "DELETE",
    "PATCH",
    "OPTIONS",
    "TRACE",
    "CONNECT",
    "PROPFIND",
    "get",
    "Get",
    "GETX",
    "G\x00T",
)
_HEADERS = (
    f"X-Forwarded-For: {OTHER}",
    f"X-Real-IP: {OTHER}",
    f"Forwarded: for={OTHER}",
    "X-Original-URL: /latest/user-data",
    "X-Rewrite-URL: /latest/user-data",
    "X-HTTP-Method-Override: GET",
    "X-aws-ec2-metadata-token: canary-upstream-token-0",
    "X-aws-ec2-metadata-token: " + "A" * 56,
    "X-aws-ec2-metadata-token-ttl-seconds: 21600",
    "Host: evil.example",
    "Host: 169.254.169.254, evil.example",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: \x0bchunked",
    "Content-Length: 10",
    "Content-Length: 1e1",
    "Expect: 100-continue",
    "Upgrade: h2c",
    "Connection: X-aws-ec2-metadata-token, close",
    "Connection: Upgrade",
    "Range: bytes=0-1",
    "Cookie: role=neighbour-role",
    "X: a\r\n b",
    "X: a\nGET /latest/user-data HTTP/1.1",
    "X: \x00",
    "Metadata-Flavor: Google",
    "Metadata: true",
)
_LINES = (
    "HTTP/1.0",
    "HTTP/1.1",
    "HTTP/0.9",
    "HTTP/2.0",
    "HTTP/1.2",
    "http/1.1",
    "HTTP/1.1 ",
    "HTTP/01.1",
    "HTTPS/1.1",
    "",
)


def around() -> Iterator[bytes]:
    """Requests whose method, version line, headers or body are odd, for each of SECRETS and one harmless path."""
    for path in (*SECRETS, "meta-data/instance-id"):
        for method in _METHODS:
            yield request(f"{method} /latest/{path}", [])
        for first, second in product(_HEADERS, (None, *_HEADERS[:4])):
            yield request(f"GET /latest/{path}", [first, *([second] if second else [])])
        for line, end in product(_LINES, ("\r\n", "\n", "\r")):
            yield f"GET /latest/{path} {line}{end}{HOST}{end}{end}".encode("latin-1")
        hidden = f"GET /latest/{path} HTTP/1.1\r\n{HOST}\r\n\r\n"
        for body in (f"Content-Length: {len(hidden)}\r\n\r\n{hidden}",
                     f"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}",
                     f"Transfer-Encoding: chunked\r\n\r\n{len(hidden):x};x={path}\r\n{hidden}\r\n0\r\n\r\n",
                     f"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n{hidden}",
                     f"\r\n{hidden}"):  # fmt: skip
            for first in ("GET /latest/meta-data/instance-id", "PUT /latest/api/token", "HEAD /"):
                yield f"{first} HTTP/1.1\r\n{HOST}\r\n{body}".encode("latin-1")


def mutants(seed: int, count: int) -> Iterator[bytes]:
    """Whole requests with a few bytes changed, removed, doubled or put in."""
    random = Random(seed)
    bases = [request(f"GET /latest/{path}", ["Connection: keep-alive"]) for path in SECRETS]
    pieces = [
        b"\x00",
        b"\r",
        b"\n",
        b"\r\n",
        b" ",
        b"\t",
        b"%",
        b"/",
        b"..",
        b"\\",
        b";",
        b"\xff",
        b":",
        b"HTTP/1.1",
        b"GET ",
    ]
    for _ in range(count):
        raw = bytearray(random.choice(bases))
        for _ in range(random.randint(1, 3)):
            at = random.randrange(len(raw) - 4)
            raw[at : at + random.choice((0, 0, 1, 2))] = random.choice(pieces)
        yield bytes(raw)


def generated() -> list[Row]:
    """All of the above, each once; targets spelt in Latin-1 and in UTF-8 where that differs."""
    raws: dict[bytes, None] = {}
    for target in spellings():
        for encoding in ("utf-8", "latin-1"):
            encoded = target.encode(encoding, "replace")
            raws[b"GET %b HTTP/1.1\r\n%b\r\n\r\n" % (encoded, HOST.encode())] = None
    raws.update(dict.fromkeys(around()))
    raws.update(dict.fromkeys(mutants(1, 1500)))
    return [Row("R", raw) for raw in raws]

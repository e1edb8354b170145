"""One event, one line, whatever is in it."""

import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube2iam import logs
from kube2iam.settings import Settings

log = logging.getLogger("kube2iam.test")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root, own = logging.getLogger(), logging.getLogger("kube2iam")
    handlers, levels = list(root.handlers), (root.level, own.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    own.setLevel(levels[1])
    logging.captureWarnings(capture=False)


def configured(log_format: str = "text", log_level: str = "info", *, verbose: bool = False) -> io.StringIO:
    stream = io.StringIO()
    logs.configure(Settings(log_format=log_format, log_level=log_level, verbose=verbose), stream)
    return stream


def record(message: str, *arguments: object, **extra: Any) -> logging.LogRecord:
    made = logging.LogRecord("kube2iam.test", logging.WARNING, __file__, 1, message, arguments, None)
    made.created = 1_900_000_000.5
    vars(made).update(extra)
    return made


def test_text_is_what_go_kube2iam_writes() -> None:
    line = logs.TextLines().format(record("GET / (200)", **{"req.method": "GET", "res.duration": 0.25, "ok": True}))
    assert line == (
        'time="2030-03-17T17:46:40.500Z" level=warning msg="GET / (200)" ok=true req.method=GET res.duration=0.25'
    )


def test_json_has_the_same_names() -> None:
    line = logs.JsonLines().format(record("a %s", "b", **{"pod.name": "web", "res.status": 200, "none": None}))
    assert json.loads(line) == {
        "time": "2030-03-17T17:46:40.500Z",
        "level": "warning",
        "msg": "a b",
        "none": None,
        "pod.name": "web",
        "res.status": 200,
    }


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("web-1", "web-1"),
        ("arn:aws:iam::1:role/a", '"arn:aws:iam::1:role/a"'),
        ("", '""'),
        ("a b", '"a b"'),
        ("a=b", '"a=b"'),
        ('say "x\\"', r'"say \"x\\\""'),
        ("é…", '"é…"'),
        ("a\r\nlevel=fatal", r'"a\r\nlevel=fatal"'),
        ("\x1b[31m\x00\x7f\u2028\u202e\ud800", r'"\u001b[31m\u0000\u007f\u2028\u202e\ud800"'),
        (12, "12"),
        (None, "None"),
        (False, "false"),
    ],
)
def test_a_value_is_quoted_where_it_must_be(value: object, written: str) -> None:
    assert logs.TextLines().format(record("m", field=value)).endswith(f" field={written}")


@given(st.text(), st.text())
def test_no_text_makes_a_second_line(message: str, value: str) -> None:
    made = record("%s", message, **{"req.path": value})
    assert logs.TextLines().format(made).isprintable()
    line = logs.JsonLines().format(made)
    assert line.isascii()
    assert line.isprintable()
    found = json.loads(line)
    assert (found["msg"], found["req.path"]) == (message, value)


def test_a_field_cannot_take_the_place_of_the_lines_own() -> None:
    found = json.loads(logs.JsonLines().format(record("m", level="fatal", time="never")))
    assert (found["level"], found["fields.level"], found["fields.time"]) == ("warning", "fatal", "never")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_an_exception_stays_on_its_line(log_format: str) -> None:
    stream = configured(log_format)
    try:
        int("not a\nnumber")
    except ValueError:
        log.exception("reading failed")
    (line,) = stream.getvalue().splitlines()
    assert "ValueError: invalid literal" in line
    assert "test_logs.py" in line


def test_python_warnings_are_lines_too() -> None:
    stream = configured("json")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)
        warnings.warn("old\nways", stacklevel=1)
    (line,) = stream.getvalue().splitlines()
    assert "old\nways" in json.loads(line)["msg"]
    assert json.loads(line)["logger"] == "py.warnings"


@pytest.mark.parametrize(
    ("level", "verbose", "heard"),
    [
        ("debug", False, "debug info warning error"),
        ("info", False, "info warning error"),
        ("warning", False, "warning error"),
        ("error", False, "error"),
        ("error", True, "debug info warning error"),
    ],
)
def test_what_is_heard_depends_on_the_level(level: str, verbose: bool, heard: str) -> None:
    stream = configured("json", level, verbose=verbose)
    for name in ("debug", "info", "warning", "error"):
        log.log(logging.getLevelNamesMapping()[name.upper()], name)
    assert " ".join(json.loads(line)["msg"] for line in stream.getvalue().splitlines()) == heard


@pytest.mark.parametrize("name", ["urllib3.connectionpool", "aiohttp.access", "kubernetes.client.rest"])
def test_libraries_tell_no_secrets_at_debug(name: str) -> None:
    stream = configured("json", verbose=True)
    logging.getLogger(name).info("SecretAccessKey=x")
    logging.getLogger(name).debug("SecretAccessKey=x")
    assert stream.getvalue() == ""
    logging.getLogger(name).warning("retrying")
    assert json.loads(stream.getvalue())["logger"] == name


@pytest.mark.parametrize("name", ["botocore.endpoint", "botocore.credentials", "botocore.tokens"])
def test_the_sdk_tells_none_at_any_level(name: str) -> None:
    """Its warning about a renewal that failed holds STS's answer, which may hold the session's token."""
    stream = configured("json", verbose=True)
    for level in (logging.DEBUG, logging.WARNING, logging.ERROR):
        logging.getLogger(name).log(level, "x-amz-security-token:x")
    assert stream.getvalue() == ""


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_no_field_is_without_end(log_format: str) -> None:
    stream = configured(log_format)
    log.warning("long", extra={"error": "x" * 1_000_000})
    assert 16_384 < len(stream.getvalue()) < 17_000


def test_a_library_is_as_quiet_as_the_agent() -> None:
    stream = configured(log_level="error")
    logging.getLogger("asyncio").warning("slow")
    assert stream.getvalue() == ""


def test_nothing_is_formatted_for_a_level_that_is_off() -> None:
    class Loud:
        def __str__(self) -> str:
            raise AssertionError("it was formatted")

    stream = configured()
    log.debug("%s", Loud(), extra={"field": Loud()})
    assert stream.getvalue() == ""


def test_configuring_again_replaces_the_lines_and_leaves_others_alone() -> None:
    other = logging.StreamHandler(io.StringIO())
    logging.getLogger().addHandler(other)
    first, second = configured(), configured()
    log.info("once")
    assert first.getvalue() == ""
    assert len(second.getvalue().splitlines()) == 1
    assert other in logging.getLogger().handlers

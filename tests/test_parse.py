"""Texts and the values they mean."""

import math
import string
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube2iam import parse

_MILLIS = {"h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("+0", 0),
        ("0s", 0),
        ("15m", 900),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("500ms", 0.5),
        ("1h0m0.5s", 3600.5),
        (".5s", 0.5),
        ("5.s", 5),
        ("1us", 1e-6),
        ("1µs", 1e-6),
        ("1μs", 1e-6),
        ("100ns", 1e-7),
        ("+2h", 7200),
        ("1m1m", 120),
        ("0.1s0.2s", 0.3),
    ],
)
def test_a_go_duration_is_seconds(text: str, seconds: float) -> None:
    assert parse.duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", " ", "+", "-1s", "1", "1.5", "s", ".s", "1 s", "1S", "1d", "1h 30m", "1e3s", "1h-1m", "٣s", "1s\n", "9" * 70],
)
def test_anything_else_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError):
        parse.duration(text)


@pytest.mark.parametrize(("text", "reason"), [("900", "did you mean 900s"), ("-5m", "negative")])
def test_the_usual_slips_are_named(text: str, reason: str) -> None:
    with pytest.raises(parse.UnfitTextError, match=reason):
        parse.duration(text)


@given(st.lists(st.tuples(st.integers(0, 9999), st.sampled_from(list(_MILLIS))), min_size=1, max_size=5))
def test_the_parts_of_a_duration_add_up(parts: list[tuple[int, str]]) -> None:
    text = "".join(f"{count}{unit}" for count, unit in parts)
    total = sum(Decimal(count * _MILLIS[unit]) for count, unit in parts) / 1000
    assert parse.duration(text) == float(total)


@given(st.integers(0, 10**10))
def test_a_shown_duration_reads_back(milliseconds: int) -> None:
    assert math.isclose(parse.duration(parse.show_duration(milliseconds / 1000)), milliseconds / 1000)


@given(st.text(st.sampled_from("0123456789.hmsuµn+- \n"), max_size=80))
def test_no_text_breaks_the_duration(text: str) -> None:
    try:
        seconds = parse.duration(text)
    except ValueError:
        return
    assert seconds >= 0
    assert math.isfinite(seconds)


@pytest.mark.parametrize("text", ["1", "t", "T", "true", "TRUE", "True"])
def test_go_takes_for_true(text: str) -> None:
    assert parse.boolean(text)


@pytest.mark.parametrize("text", ["0", "f", "F", "false", "FALSE", "False"])
def test_go_takes_for_false(text: str) -> None:
    assert not parse.boolean(text)


@pytest.mark.parametrize("text", ["", "yes", "no", "on", "tRUE", " true", "2"])
def test_go_takes_for_no_boolean(text: str) -> None:
    with pytest.raises(ValueError):
        parse.boolean(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("169.254.169.254", "169.254.169.254:80"),
        ("127.0.0.1:1338", "127.0.0.1:1338"),
        ("fd00:ec2::254", "[fd00:ec2::254]:80"),
        ("[fd00:ec2::254]", "[fd00:ec2::254]:80"),
        ("[FD00:EC2:0::254]:81", "[fd00:ec2::254]:81"),
        ("metadata.example.com:8080", "metadata.example.com:8080"),
        ("imds", "imds:80"),
    ],
)
def test_an_endpoint_is_host_and_port(text: str, value: str) -> None:
    assert parse.endpoint(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":80",
        "a:",
        "a:0",
        "a:65536",
        "a:b",
        "http://a",
        "a/b",
        "a b",
        "[::1",
        "::1]:80",
        "-a",
        "a..b",
        "a:1:2",
        "a\n",
    ],
)
def test_anything_else_is_no_endpoint(text: str) -> None:
    with pytest.raises(ValueError):
        parse.endpoint(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", ()),
        ("10.0.0.1", ("10.0.0.1",)),
        ("10.0.0.1, fd00::0:1", ("10.0.0.1", "fd00::1")),
        ("::ffff:10.0.0.1", ("10.0.0.1",)),
        ("10.0.0.1,", ("10.0.0.1",)),
    ],
)
def test_addresses_are_canonical(text: str, value: tuple[str, ...]) -> None:
    assert parse.addresses(text) == value


@pytest.mark.parametrize(
    "text", ["10.0.0", "10.0.0.1/24", "10.0.0.1 10.0.0.2", "10.0.0.1,10.0.0.2", "0.0.0.0", "ff02::1"]
)
def test_anything_else_is_no_address_of_a_node(text: str) -> None:
    with pytest.raises(parse.UnfitTextError):
        parse.addresses(text)


@pytest.mark.parametrize(
    "text", ["http://10.0.0.1:8080", "https://api.example.com/k8s/clusters/c1", "https://[::1]:6443"]
)
def test_a_server_is_a_url(text: str) -> None:
    assert parse.server_url(text) == text
    assert parse.server_url(f"{text}/") == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10.0.0.1",
        "ftp://a",
        "https://",
        "https://a:b",
        "https://a:0",
        "https://u:p@a",
        "https://a?b",
        "https://a\n",
    ],
)
def test_anything_else_is_no_server(text: str) -> None:
    with pytest.raises(ValueError):
        parse.server_url(text)


def test_regular_expressions_stand_between_spaces_and_each_compiles() -> None:
    assert parse.regexps(" a.*\n b{1,2} ") == ("a.*", "b{1,2}")
    assert parse.regexps("") == ()
    with pytest.raises(parse.UnfitTextError, match="missing"):
        parse.regexps("a (")
    with pytest.raises(parse.UnfitTextError):
        parse.regexps("(?=a)")


@pytest.mark.parametrize("text", ["{node}", "{a}.{b}", "x", "", "a=b@c,d+e-f_g"])
def test_a_template_is_text_with_fields(text: str) -> None:
    assert parse.template(text, ("node", "a", "b")) == text


@pytest.mark.parametrize(
    "text", ["{c}", "{", "}", "{}", "{a!r}", "{a:>9}", "{a.b}", "{a[0]}", "{{a}}", "a b", "a/b", "é"]
)
def test_anything_else_is_no_template(text: str) -> None:
    with pytest.raises(ValueError):
        parse.template(text, ("a", "b"))


@given(st.text(string.printable, max_size=40))
def test_no_text_breaks_a_parser(text: str) -> None:
    for read in (parse.boolean, parse.port, parse.endpoint, parse.addresses, parse.server_url, parse.regexps):
        try:
            read(text)
        except ValueError as error:
            assert "\n" not in str(error) or "\n" in text
    assert parse.fields_of("{a}-{b}x{a}") == {"a", "b"}

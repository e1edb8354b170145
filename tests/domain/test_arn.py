import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube2iam.domain.arn import BaseArn, MalformedRoleError, RoleArn, complete

BASE = BaseArn.parse("arn:aws:iam::123456789012:role/")

NAMES = st.from_regex(r"[A-Za-z0-9_+=,.@-]{1,64}", fullmatch=True)
PATHS = st.lists(st.from_regex(r"[!-.0-~]{1,12}", fullmatch=True), max_size=4).map(
    lambda parts: "/".join(["", *parts, ""])
)


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("app", "arn:aws:iam::123456789012:role/app"),
        ("/app", "arn:aws:iam::123456789012:role/app"),
        ("team/app", "arn:aws:iam::123456789012:role/team/app"),
        ("/team/app", "arn:aws:iam::123456789012:role/team/app"),
        ("a+b,c@d=e.f_g-h", "arn:aws:iam::123456789012:role/a+b,c@d=e.f_g-h"),
        ("arn:aws:iam::999999999999:role/app", "arn:aws:iam::999999999999:role/app"),
        ("arn:aws-cn:iam::999999999999:role/a/b/app", "arn:aws-cn:iam::999999999999:role/a/b/app"),
        ("arn:aws-us-gov:iam::999999999999:role/app", "arn:aws-us-gov:iam::999999999999:role/app"),
        ("arn:aws-iso-b:iam::999999999999:role/app", "arn:aws-iso-b:iam::999999999999:role/app"),
    ],
)
def test_a_role_is_a_name_a_path_and_name_or_an_arn(text: str, whole: str) -> None:
    assert str(complete(text, BASE)) == whole


@pytest.mark.parametrize(
    ("text", "mend"),
    [
        ("arn:aws:iam:123567989012:role/nginx-role", "arn:aws:iam::123567989012:role/nginx-role"),
        ("ARN:AWS:IAM::123567989012:ROLE/App", "arn:aws:iam::123567989012:role/App"),
        ("arn:aws:iam::123567989012:roles/app", "arn:aws:iam::123567989012:role/app"),
        ("arn:aws:iam::123567989012:role/app/", "arn:aws:iam::123567989012:role/app"),
        (" arn:aws:iam::123567989012:role/app\n", "arn:aws:iam::123567989012:role/app"),
        ("arn:aws:iam::123567989012:instance-profile/team/app", "arn:aws:iam::123567989012:role/team/app"),
        ("arn:aws:sts::123567989012:assumed-role/app/i-0123", "arn:aws:iam::123567989012:role/app"),
        ("app ", "app"),
        ("team/app\n", "team/app"),
    ],
)
def test_a_slip_is_answered_with_its_mend(text: str, mend: str) -> None:
    with pytest.raises(MalformedRoleError, match=f"did you mean {mend}$".replace("+", r"\+")):
        complete(text, BASE)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "//app",
        "arn:aws:iam::123456789012:role//app",
        "app/",
        "a b c/",
        "x" * 65,
        "rôle",
        "role?x",
        "arn:",
        "arn:aws:iam::12345:role/app",
        "arn:aws:iam::123456789012:user/app",
        "arn:aws:s3:::bucket",
        "arn:aws:iam::１２３４５６７８９０１２:role/app",
        "arn:aws:iam::123456789012:role/" + "p" * 513 + "/app",
    ],
)
def test_what_names_no_role_is_refused(text: str) -> None:
    with pytest.raises(MalformedRoleError, match=r"expected|did you mean"):
        complete(text, BASE)


def test_a_bare_name_needs_an_account() -> None:
    with pytest.raises(MalformedRoleError, match="--base-role-arn"):
        complete("app", None)


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("arn:aws:iam::123456789012:role", "arn:aws:iam::123456789012:role/"),
        ("arn:aws:iam::123456789012:role/", "arn:aws:iam::123456789012:role/"),
        ("arn:aws-cn:iam::123456789012:role/team/x", "arn:aws-cn:iam::123456789012:role/team/x/"),
        ("arn:aws:iam::123456789012:role/my.team/", "arn:aws:iam::123456789012:role/my.team/"),
    ],
)
def test_a_base_arn_ends_with_a_slash(text: str, whole: str) -> None:
    assert str(BaseArn.parse(text)) == whole


@pytest.mark.parametrize("base", [None, BASE])
@pytest.mark.parametrize(
    "text",
    [
        "/" * 250_000 + "!",
        "a/" * 100_000 + " app",
        "arn:aws:iam::123456789012:role/" + "a/" * 100_000 + "app",
        "arn:aws:iam::123456789012:role/" + "a/" * 300 + "app",
        "a" * 250_000,
        " " * 250_000,
        "arn:aws:sts::123456789012:assumed-role/" + "/" * 250_000,
    ],
)
def test_no_text_takes_long_or_makes_a_long_refusal(text: str, base: BaseArn | None) -> None:
    begun = time.process_time()
    with pytest.raises(MalformedRoleError) as caught:
        complete(text, base)
    assert time.process_time() - begun < 0.1
    assert len(str(caught.value)) < 400
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "arn:aws:iam:us-east-1:123456789012:role/", "arn:aws:iam::1:role/", "role/"])
def test_what_is_no_base_arn_is_refused(text: str) -> None:
    with pytest.raises(MalformedRoleError, match="not a base role ARN"):
        BaseArn.parse(text)


def test_the_spellings_a_client_may_use() -> None:
    arn = RoleArn.parse("arn:aws:iam::123456789012:role/team/app")
    assert arn.spellings == ("app", "team/app", "role/team/app", "arn:aws:iam::123456789012:role/team/app")


@given(NAMES, PATHS)
def test_an_arn_is_read_as_it_is_written(name: str, path: str) -> None:
    arn = RoleArn("aws", "123456789012", path, name)
    assert RoleArn.parse(str(arn)) == arn


@given(st.text())
def test_any_text_is_a_role_or_a_clear_refusal(text: str) -> None:
    try:
        arn = complete(text, BASE)
    except MalformedRoleError as error:
        assert len(str(error)) < 700
    else:
        assert RoleArn.parse(str(arn)) == arn

"""The table of settings: what may be said, what is meant, what is answered to the rest."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kube2iam import manual
from kube2iam.domain.policy import NAMESPACE_DEFAULT
from kube2iam.domain.tags import ALLOWED_TAGS
from kube2iam.flags import Flag
from kube2iam.imds.dispatch import IMDSV2
from kube2iam.settings import DURATION, POLICY_ARNS, Settings, SettingsError, rows

PAGE = Path(__file__).parent.parent / "docs" / "settings.md"
_SECRET = "hunter2-secret"
_EMPTY_ALLOWED = {
    "kubeconfig",
    "api_server",
    "api_token",
    "node",
    "metadata_allow",
    "metadata_deny",
    "base_role_arn",
    "default_role",
    "iam_external_id",
    "iam_role_session_ttl",
    "region",
    "assume_role_arn",
    "cluster_name",
    "transitive_session_tags",
    "source_identity",
    "host_ip",
    "metrics_port",
}


def settings(environment: dict[str, str] | None = None, /, **given: str | list[str]) -> Settings:
    texts = {name: [value] if isinstance(value, str) else value for name, value in given.items()}
    return Settings.from_texts(texts, environment or {})


def upstream_defaults() -> dict[str, Any]:
    """The defaults of Go kube2iam, apart from those that docs/migrate.md says are others."""
    return {
        "kubeconfig": "",
        "api_server": "",
        "api_token": "",
        "insecure": False,
        "app_port": 8181,
        "metrics_port_or_app": 8181,
        "base_role_arn": "",
        "auto_discover_base_arn": False,
        "auto_discover_default_role": False,
        "default_role": "",
        "debug": False,
        "iam_role_key": "iam.amazonaws.com/role",
        "iam_external_id": "iam.amazonaws.com/external-id",
        "metadata_addr": "169.254.169.254:80",
        "iptables": False,
        "host_interface": "docker0",
        "host_ip": (),
        "namespace_restrictions": "off",
        "namespace_restriction_format": "glob",
        "namespace_key": "iam.amazonaws.com/allowed-roles",
        "cache_resync_period": 1800,
        "resolve_duplicate_cache_ips": False,
        "node": "",
        "backoff_max_interval": 1,
        "backoff_max_elapsed_time": 2,
        "log_format": "text",
        "log_level": "info",
        "verbose": False,
        "use_regional_sts_endpoint": False,
        "version": False,
    }


def test_defaults_are_those_of_go_kube2iam() -> None:
    assert {name: getattr(Settings(), name) for name in upstream_defaults()} == upstream_defaults()


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.field)
def test_each_row_is_whole(row: Flag) -> None:
    assert row.help[0].isupper()
    assert row.group
    assert row.kind.allowed
    assert row.environment == () if row.field == "version" else row.environment[0] == f"KUBE2IAM_{row.field.upper()}"
    assert row.name == "--" + row.field.replace("_", "-")
    assert row.secret == (row.field == "api_token")


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.field)
def test_each_default_is_allowed_and_reads_back(row: Flag) -> None:
    if row.shown_default:
        assert row.kind.parse(row.shown_default) == row.default


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.field)
def test_an_empty_value_is_refused_or_means_nothing(row: Flag) -> None:
    if row.field in _EMPTY_ALLOWED:
        assert getattr(settings(**{row.field: ""}), row.field) in ("", (), None)
    else:
        with pytest.raises(SettingsError, match=re.escape(row.name)):
            settings(**{row.field: ""})


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.field)
def test_the_page_shows_each_setting_as_it_is(row: Flag) -> None:
    line = next(line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{row.name}` |"))
    assert f"| `{row.shown_default}` |" in line if row.shown_default else "| none |" in line


def test_the_page_is_not_stale() -> None:
    page = PAGE.read_text()
    assert page == manual.with_tables(page), "run: python -m kube2iam.manual docs/settings.md"


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("api_server", "http://127.0.0.1:8001/", "http://127.0.0.1:8001"),
        ("api_token", "abc\n", "abc"),
        ("insecure", "T", True),
        ("prefetch", "false", False),
        ("node", "ip-10-0-0-1.eu-west-1.compute.internal", "ip-10-0-0-1.eu-west-1.compute.internal"),
        ("cache_resync_period", "0", 0),
        ("app_port", "1", 1),
        ("metrics_port", "9543", 9543),
        ("metadata_addr", "127.0.0.1:1338", "127.0.0.1:1338"),
        ("imdsv2", "Required", "required"),
        ("imdsv2_hop_limit", "255", 255),
        ("base_role_arn", "arn:aws:iam::123456789012:role", "arn:aws:iam::123456789012:role/"),
        ("base_role_arn", "arn:aws-cn:iam::123456789012:role/team/a.b/", "arn:aws-cn:iam::123456789012:role/team/a.b/"),
        ("base_role_arn", "arn:aws-iso-b:iam::123456789012:role/x", "arn:aws-iso-b:iam::123456789012:role/x/"),
        ("default_role", "arn:aws-us-gov:iam::123456789012:role/p/q", "arn:aws-us-gov:iam::123456789012:role/p/q"),
        ("namespace_restrictions", "true", "on"),
        ("namespace_restrictions", "FALSE", "off"),
        ("namespace_restrictions", "0", "off"),
        ("namespace_restrictions", "report-only", "report-only"),
        ("namespace_restriction_format", "RegExp", "regexp"),
        ("iam_role_session_ttl", "7m30s", 450),
        ("iam_role_session_duration", "12h", 43200),
        ("iam_role_error_ttl", "0", 0),
        ("assume_role_arn", "arn:aws:iam::123456789012:role/hub", "arn:aws:iam::123456789012:role/hub"),
        ("session_name", "{namespace}.{pod}", "{namespace}.{pod}"),
        ("cluster_name", "aws", "aws"),
        ("cluster_name", "eu-aws:prod", "eu-aws:prod"),
        ("iam_external_id", "", ""),
        ("host_interface", "cali+, eni+", "cali+,eni+"),
        ("host_interface", "!eth0", "!eth0"),
        ("host_interface", "auto", "auto"),
        ("host_interface", "auto,!eth1", "auto,!eth1"),
        ("host_interface", "+", "+"),
        ("host_ip", "fd00::1,10.0.0.1", ("fd00::1", "10.0.0.1")),
        ("redirect_check_period", "500ms", 0.5),
        ("log_level", "WARN", "warning"),
        ("log_level", "trace", "debug"),
        ("log_format", "JSON", "json"),
        ("max_request_rate", "0", 0),
        ("max_request_rate", "2.5", 2.5),
        ("max_header_bytes", "0", 0),
    ],
)
def test_what_may_be_said(field: str, text: str, value: object) -> None:
    assert getattr(settings(**{field: text}), field) == value


@pytest.mark.parametrize(
    ("field", "beginning"), [("assume_role_arn", "arn:aws:iam::123456789012:role/"), ("default_role", "")]
)
def test_a_roles_path_has_a_length(field: str, beginning: str) -> None:
    for length in (510, 511):
        given = {field: [f"{beginning}{'p' * length}/app"], "base_role_arn": ["arn:aws:iam::123456789012:role/"]}
        if length == 510:
            Settings.from_texts(given, {})
        else:
            with pytest.raises(SettingsError, match="--" + field.replace("_", "-")):
                Settings.from_texts(given, {})


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("api_server", "10.0.0.1:8080"),
        ("insecure", "yes"),
        ("node", "$(NODE_NAME)"),
        ("node", "a b"),
        ("cache_resync_period", "30"),
        ("cache_resync_period", "10ms"),
        ("app_port", "0"),
        ("app_port", "65536"),
        ("app_port", "http"),
        ("metadata_addr", "http://169.254.169.254"),
        ("imdsv2", "on"),
        ("imdsv2_hop_limit", "256"),
        ("metadata_allow", "("),
        ("metadata_deny", "(?=x)"),
        ("base_role_arn", "arn:aws:iam::12345678901:role/"),
        ("base_role_arn", "arn:aws:iam:us-east-1:123456789012:role/"),
        ("base_role_arn", "arn:aws:iam:123567989012:role/"),
        ("base_role_arn", "arn:gcp:iam::123456789012:role/"),
        ("base_role_arn", "role/"),
        ("default_role", "arn:aws:iam:123567989012:role/nginx-role"),
        ("default_role", "a b"),
        ("iam_role_key", "a b"),
        ("iam_role_key", "/x"),
        ("namespace_key", "a/b/c"),
        ("namespace_restrictions", "maybe"),
        ("namespace_restriction_format", "regex"),
        ("iam_role_session_ttl", "7m29s"),
        ("iam_role_session_ttl", "6h1s"),
        ("iam_role_session_duration", "14m59s"),
        ("iam_role_session_duration", "12h1s"),
        ("iam_role_error_ttl", "-1s"),
        ("region", "EU"),
        ("region", "aws-global"),
        ("region", "eu-west-1a"),
        ("assume_role_arn", "arn:aws:iam::123456789012:role//hub"),
        ("region", "aws-us-gov-global"),
        ("assume_role_arn", "hub"),
        ("cluster_name", "aws:prod"),
        ("cluster_name", "AWS:prod"),
        ("cluster_name", "a b"),
        ("session_name", "{podname}"),
        ("session_name", "a/b"),
        ("transitive_session_tags", "a*"),
        ("host_interface", "a-name-that-is-too-long"),
        ("host_interface", "a/b"),
        ("host_interface", 'a"b'),
        ("host_interface", "auto,eth1"),
        ("host_interface", "!+"),
        ("host_ip", "node-1"),
        ("host_ip", "10.0.0.1,10.0.0.2"),
        ("redirect_check_period", "0"),
        ("redirect_backend", "nftables"),
        ("log_level", "loud"),
        ("log_format", "xml"),
        ("state_dir", "run"),
        ("state_dir", "/run/../etc"),
        ("max_request_line", "10"),
        ("max_request_rate", "-1"),
    ],
)
def test_what_may_not_be_said(field: str, text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings(**{field: text})
    message = str(caught.value)
    assert message.startswith("--" + field.replace("_", "-"))
    assert text in message
    assert "expected " in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({"base_role_arn": "arn:aws:iam::123456789012:role/", "auto_discover_base_arn": "true"}, "--base-role-arn"),
        (
            {"default_role": "arn:aws:iam::123456789012:role/a", "auto_discover_default_role": "true"},
            "--auto-discover-default-role",
        ),
        ({"iptables": "true"}, "--host-ip"),
        ({"iam_role_session_ttl": "15m", "iam_role_session_duration": "2h"}, "--iam-role-session-duration"),
        ({"default_role": "app"}, "--base-role-arn"),
        ({"session_name": "{cluster}.{pod}"}, "--cluster-name"),
        ({"source_identity": "{cluster}"}, "--cluster-name"),
        ({"session_name": ""}, "--session-name"),
        (
            {"session_tags": "true", "session_tag_prefix": "iam.amazonaws.com/session-"},
            "iam.amazonaws.com/session-duration",
        ),
        (
            {"session_tags": "true", "session_tag_prefix": "iam.amazonaws.com/session-policy-arns"},
            "--session-tag-prefix",
        ),
        ({"session_tags": "true", "session_tag_prefix": "iam"}, "--session-tag-prefix"),
        (
            {"session_tags": "true", "session_tag_prefix": "example.com/r", "iam_role_key": "example.com/role"},
            "example.com/role",
        ),
        (
            {"session_tags": "true", "session_tag_prefix": "example.com/x", "iam_external_id": "example.com/x-id"},
            "example.com/x-id",
        ),
        ({"transitive_session_tags": "team"}, "--session-tags"),
        ({"session_tags": "true", "transitive_session_tags": ",".join(f"t{n}" for n in range(51))}, "50"),
    ],
)
def test_settings_that_do_not_go_together(given: dict[str, str], names: str) -> None:
    with pytest.raises(SettingsError, match=names):
        settings(**given)


@pytest.mark.parametrize("name", [DURATION, POLICY_ARNS])
def test_no_prefix_of_tags_covers_what_the_agent_reads_itself(name: str) -> None:
    with pytest.raises(SettingsError, match=name):
        settings(session_tags="true", session_tag_prefix=name)
    assert settings(session_tag_prefix=name).session_tag_prefix == name, "without tags it means nothing"


@pytest.mark.parametrize("name", ["iam.amazonaws.com/external-id", "example.com/x"])
def test_role_and_external_id_are_never_one_annotation(name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings(iam_role_key=name, **({} if "external" in name else {"iam_external_id": name}))
    assert all(part in str(caught.value) for part in ("--iam-role-key", "--iam-external-id", name))
    assert settings(iam_role_key=name, iam_external_id="").iam_role_key == name


@pytest.mark.parametrize(
    ("field", "name"),
    [
        *((field, name) for field in ("iam_role_key", "iam_external_id") for name in (DURATION, POLICY_ARNS)),
        *(("namespace_key", name) for name in (NAMESPACE_DEFAULT, ALLOWED_TAGS, IMDSV2)),
    ],
)
def test_no_annotation_is_read_as_two_things(field: str, name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings(**{field: name})
    assert str(caught.value).startswith(f'--{field.replace("_", "-")} "{name}"')


def test_pods_and_namespaces_may_have_annotations_of_one_name() -> None:
    assert settings(namespace_key="iam.amazonaws.com/role").namespace_key == Settings().iam_role_key


def test_settings_are_consistent_however_they_are_made() -> None:
    with pytest.raises(SettingsError, match="--host-ip"):
        Settings(iptables=True)
    assert Settings(iptables=True, redirect_backend="none").iptables
    assert Settings(default_role="app", auto_discover_base_arn=True).default_role == "app"


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({"kubeconfig": "/k", "api_server": "https://a"}, "--kubeconfig comes first"),
        ({"api_token": _SECRET}, "no --api-server"),
        ({"api_server": "http://a", "api_token": _SECRET}, "unencrypted"),
        ({"insecure": "true"}, "--insecure"),
        ({}, "--node is not given"),
        ({"session_tags": "true"}, "eks-cluster-name"),
        ({"debug": "true"}, "--debug shows nothing"),
        ({"debug": "true", "app_port": "80", "metrics_port": "80"}, "--debug shows nothing"),
    ],
)
def test_settings_that_were_probably_not_meant_so(given: dict[str, str], names: str) -> None:
    sentences = settings(**given).cautions()
    assert any(names in sentence for sentence in sentences)
    assert not any(_SECRET in sentence for sentence in sentences)


def test_a_usual_set_of_settings_is_nothing_to_warn_about() -> None:
    usual = settings({"HOST_IP": "10.0.0.1", "NODE_NAME": "n1"}, iptables="true", api_server="http://127.0.0.1:1")
    assert usual.cautions() == ()


def test_the_environment_is_read_where_the_flag_is_not_given() -> None:
    environment = {"KUBE2IAM_APP_PORT": "9000", "KUBE2IAM_IPTABLES": "1", "HOST_IP": "10.0.0.1", "NODE_NAME": "n1"}
    found = settings(environment)
    assert (found.app_port, found.iptables, found.host_ip, found.node) == (9000, True, ("10.0.0.1",), "n1")


def test_a_flag_beats_the_environment_also_when_it_is_empty() -> None:
    environment = {"KUBE2IAM_NODE": "n1", "NODE_NAME": "n2", "KUBE2IAM_APP_PORT": "9000"}
    assert settings(environment, node="").node == ""
    assert settings(environment, app_port="8000").app_port == 8000


def test_the_first_variable_that_is_set_and_not_empty_decides() -> None:
    environment = {"KUBE2IAM_HOST_IP": "", "HOST_IPS": "10.0.0.1,fd00::1", "HOST_IP": "10.0.0.1"}
    assert settings(environment).host_ip == ("10.0.0.1", "fd00::1")
    assert settings({"HOST_IPS": "", "HOST_IP": "10.0.0.1"}).host_ip == ("10.0.0.1",)
    assert settings({"NODE_NAME": "n2", "KUBE2IAM_NODE": "n1"}).node == "n1"


def test_the_variable_is_named_where_it_is_wrong() -> None:
    with pytest.raises(SettingsError, match=r'^KUBE2IAM_APP_PORT "x" is not valid'):
        settings({"KUBE2IAM_APP_PORT": "x"})
    with pytest.raises(SettingsError, match=r'^HOST_IP "x" is not valid'):
        settings({"HOST_IP": "x"})


def test_the_version_is_not_read_from_a_variable_that_images_often_set() -> None:
    assert not settings({"KUBE2IAM_VERSION": "0.1.0"}).version


def test_lists_grow_and_the_last_of_other_values_counts() -> None:
    found = settings(metadata_allow=["a.*", "b c"], app_port=["1", "2"])
    assert found.metadata_allow == ("a.*", "b", "c")
    assert found.app_port == 2


def test_the_token_is_never_shown() -> None:
    assert _SECRET not in repr(settings(api_server="https://a", api_token=_SECRET))
    for text in (f"{_SECRET} x", f"{_SECRET}\n{_SECRET}"):
        with pytest.raises(SettingsError, match="--api-token") as caught:
            settings(api_token=text)
        assert _SECRET not in str(caught.value)
        assert caught.value.__cause__ is None


def test_what_follows_from_others() -> None:
    assert settings(app_port="9000").metrics_port_or_app == 9000
    assert settings(app_port="9000", metrics_port="9001").metrics_port_or_app == 9001
    assert settings().session_duration == 3600
    assert settings(iam_role_session_ttl="15m").session_duration == 1800
    assert settings(iam_role_session_duration="2h").session_duration == 7200
    assert settings(node="n1").node_or_host == "n1"
    assert settings().node_or_host


def test_settings_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().node = "other"  # type: ignore[misc] # that is the point


@given(field=st.sampled_from([row.field for row in rows()]), text=st.text(max_size=200))
@example(field="metadata_allow", text=")\x1b")
@example(field="host_ip", text="ff02::1%\x1b")
def test_no_text_gets_past_with_anything_but_one_line(field: str, text: str) -> None:
    try:
        settings(**{field: text})
    except SettingsError as error:
        assert str(error).isprintable()
        assert len(str(error)) < 500
    assert field

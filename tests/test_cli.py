"""The command itself: arguments, exit statuses, one line for what is wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube2iam import __version__, cli, manual
from kube2iam.settings import SettingsError, rows

PROGRAM = Path(sys.executable).parent / "kube2iam"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if key not in {"HOST_IP", "HOST_IPS", "NODE_NAME"}}
    return subprocess.run(
        [PROGRAM, *arguments], env=clean | environment, capture_output=True, text=True, timeout=30, check=False
    )


def test_the_version_is_printed_as_go_kube2iam_prints_it() -> None:
    done = run("--version", KUBE2IAM_APP_PORT="nonsense")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"Version: {__version__} - Commit: unknown - Date: unknown\n"


@pytest.mark.parametrize("arguments", [("--help",), ("-h",), ("--iptables", "--help"), ("--version", "-h")])
def test_help_explains_every_flag(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"  {row.name}" in done.stdout for row in rows())
    assert "\nRedirect\n" in done.stdout


def test_help_of_the_redirect_explains_what_matters_there() -> None:
    done = run("redirect", "--help")
    assert done.returncode == 0
    assert "--redirect-backend" in done.stdout
    assert "--session-name" not in done.stdout


@pytest.mark.parametrize("columns", ["40", "80", "300"])
def test_help_keeps_to_the_width_of_the_terminal(columns: str) -> None:
    lines = run("--help", COLUMNS=columns).stdout.splitlines()
    flags = lines[lines.index("Kubernetes") :]
    assert max(map(len, flags)) <= max(60, min(110, int(columns)))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--app-port=70000"], '--app-port "70000" is not valid; expected a port from 1 to 65535'),
        (["--app-prot=1"], 'there is no flag "--app-prot"; did you mean --app-port'),
        (["--app_port", "1"], "did you mean --app-port"),
        (["-app-port", "1"], "did you mean --app-port"),
        (["--xyzzy"], 'there is no flag "--xyzzy"; see kube2iam --help'),
        (["--app-port"], "--app-port needs a value; expected a port"),
        (["--node", "--iptables"], "--node needs a value"),
        (["--iptables", "false"], "--iptables=false"),
        (["--node n1"], "write --node=n1"),
        (["--debug", "extra"], '"extra" belongs to no flag'),
        (["--"], 'there is no flag "--"'),
        (["--iptables"], "--iptables needs --host-ip"),
        (["--insecure=\x1b[31m\n"], r'"\u001b[31m\u000a" is not valid'),
        (["demmo"], 'there is no command "demmo"; did you mean demo'),
        (["redirect"], "expected install, remove or status"),
        (["redirect", "instal"], 'redirect cannot "instal"'),
        (["redirect", "install"], "redirect install needs --host-ip"),
        (["redirect", "status", "--redirect-backend=ipvs"], "expected auto, nft, legacy or none"),
    ],
)
def test_a_mistake_is_status_2_and_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOST_IP", "HOST_IPS"):
        monkeypatch.delenv(name, raising=False)
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.startswith("kube2iam: ")
    assert err.endswith("\n")
    assert err[:-1].isprintable()


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (["--base-role-arn=arn:aws:iam:123456789012:role/"], {}),
        ([], {"KUBE2IAM_LOG_LEVEL": "loud"}),
        ([], {"HOST_IP": "not an address"}),
        (["redirect", "install", "--host-ip=x"], {}),
    ],
)
def test_the_program_itself_exits_so(arguments: list[str], environment: dict[str, str]) -> None:
    done = run(*arguments, **environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["--app-port", "9000"], "app_port", 9000),
        (["--app-port=9000"], "app_port", 9000),
        (["--app-port=1", "--app-port=2"], "app_port", 2),
        (["--iptables", "--host-ip", "10.0.0.1"], "iptables", True),
        (["--iptables=true", "--host-ip", "10.0.0.1"], "iptables", True),
        (["--iptables", "--host-ip", "10.0.0.1", "--iptables=0"], "iptables", False),
        (["--namespace-restrictions"], "namespace_restrictions", "on"),
        (["--namespace-restrictions=false"], "namespace_restrictions", "off"),
        (["--namespace-restrictions=report-only"], "namespace_restrictions", "report-only"),
        (["--namespace-restrictions", "--verbose"], "verbose", True),
        (["--metadata-allow=a=b", "--metadata-allow", "c"], "metadata_allow", ("a=b", "c")),
        (["--node="], "node", ""),
        (["--host-interface", "!eth0"], "host_interface", "!eth0"),
        (["--session-name", "-{pod}"], "session_name", "-{pod}"),
    ],
)
def test_flags_are_written_as_in_go(words: list[str], field: str, value: object) -> None:
    assert getattr(cli.settings_of(words, {"NODE_NAME": "n1"}), field) == value


def test_the_arguments_of_the_usual_manifest_of_go_kube2iam_are_understood() -> None:
    words = [
        "--app-port=8181",
        "--metrics-port=9543",
        "--base-role-arn=arn:aws:iam::123456789012:role/",
        "--default-role=nothing",
        "--host-ip=10.0.0.1",
        "--host-interface=eni+",
        "--iptables=true",
        "--node=ip-10-0-0-1.ec2.internal",
        "--namespace-restrictions=false",
        "--iam-role-session-ttl=900s",
        "--iam-role-error-ttl=0",
        "--backoff-max-elapsed-time=20s",
        "--backoff-max-interval=1s",
        "--cache-resync-period=30m",
        "--resolve-duplicate-cache-ips",
        "--use-regional-sts-endpoint",
        "--auto-discover-base-arn=false",
        "--log-format=json",
        "--log-level=warn",
        "--verbose",
        "--debug",
    ]
    found = cli.settings_of(words, {})
    assert found.session_duration == 1800
    assert found.cautions() == ()


def links(service: str, port: int = 8182, protocol: str = "tcp", address: str = "10.96.0.7") -> dict[str, str]:
    """The variables that the kubelet makes for a Service with one port, which is named http-api."""
    host = f"[{address}]" if ":" in address else address
    url, name = f"{protocol}://{host}:{port}", service.upper().replace("-", "_")
    one = f"{name}_PORT_{port}_{protocol.upper()}"
    return {
        f"{name}_SERVICE_HOST": address,
        f"{name}_SERVICE_PORT": str(port),
        f"{name}_SERVICE_PORT_HTTP_API": str(port),
        f"{name}_PORT": url,
        one: url,
        f"{one}_PROTO": protocol,
        f"{one}_PORT": str(port),
        f"{one}_ADDR": address,
    }


def test_variables_that_set_nothing_are_named() -> None:
    environment = {"KUBE2IAM_APP_PROT": "1", "KUBE2IAM_APP_PORT": "1", "KUBE2IAM_PORT": "8181", "PATH": "/bin"}
    assert cli.unknown_variables(environment) == (
        "the variable KUBE2IAM_APP_PROT sets nothing; did you mean KUBE2IAM_APP_PORT",
        "the variable KUBE2IAM_PORT sets nothing; did you mean KUBE2IAM_APP_PORT",
    )


@pytest.mark.parametrize(
    "environment",
    [
        links("kube2iam"),
        links("kube2iam-service"),
        links("kube2iam-prometheus", 53, "udp", "fd00::7"),
        links("kube2iam-x-port", protocol="sctp"),
        links("other-app"),
    ],
    ids=lambda environment: next(iter(environment)),
)
def test_links_to_services_that_are_named_like_no_setting_are_passed_over(environment: dict[str, str]) -> None:
    assert cli.unknown_variables(environment) == ()
    assert cli.settings_of([], environment) == cli.settings_of([], {})


@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
@pytest.mark.parametrize("address", ["10.96.0.7", "fd00::7"])
@pytest.mark.parametrize("service", ["kube2iam-metrics", "kube2iam-app"])
def test_a_link_to_a_service_is_no_port_that_is_set(service: str, protocol: str, address: str) -> None:
    environment = links(service, 8182, protocol, address)
    assert cli.settings_of([], environment) == cli.settings_of([], {})
    (said,) = cli.unknown_variables(environment)
    assert f"{service.upper().replace('-', '_')}_PORT is Kubernetes' link to the Service {service}" in said
    assert "enableServiceLinks: false" in said


@pytest.mark.parametrize("text", ["tcp://", "tcp://here", "http://10.96.0.7:8182", "tcp://10.96.0.7:8182 ", "8182x"])
def test_what_is_nearly_a_link_is_a_mistake(text: str) -> None:
    with pytest.raises(SettingsError, match="KUBE2IAM_METRICS_PORT"):
        cli.settings_of([], {"KUBE2IAM_METRICS_PORT": text})


def test_each_command_is_named_in_the_help() -> None:
    assert all(f"kube2iam {command} " in manual.usage() for command in cli.COMMANDS)


@given(st.lists(st.sampled_from(["--app-port", "--iptables", "=", "x", "--node=n", "-h1", "--", "", "true", "é\n"])))
def test_no_words_break_the_command(words: list[str]) -> None:
    try:
        found = cli.settings_of(words, {"HOST_IP": "10.0.0.1"})
    except SettingsError as error:
        assert str(error).isprintable()
    else:
        assert found.host_ip == ("10.0.0.1",)

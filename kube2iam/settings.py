"""Everything that can be set, in one table: name, default, meaning, how it is written and checked.

Adding a flag is adding a field here; the command line, the environment, the help and docs/settings.md follow.
"""

import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any, Self

from kube2iam import parse
from kube2iam.flags import (
    ADDRESSES,
    ANNOTATION,
    ANNOTATION_PREFIX,
    BASE_ARN,
    CLUSTER,
    ENDPOINT,
    FILE,
    FOLDER,
    INTERFACES,
    NODE,
    PORT,
    RATE,
    REGEXPS,
    REGION,
    ROLE,
    ROLE_ARN,
    TAG_KEYS,
    TOKEN,
    URL,
    Flag,
    choice,
    duration,
    flag,
    number,
    optional,
    switch,
    table,
    template,
)
from kube2iam.links import is_service_link

TEMPLATE_FIELDS = ("cluster", "node", "namespace", "pod", "service_account", "role", "ip")
"""What `--session-name` and `--source-identity` may hold between braces."""

KUBERNETES = "Kubernetes"
PODS = "What pods see"
ROLES = "Roles"
CREDENTIALS = "Credentials"
REDIRECT = "Redirect"
OBSERVABILITY = "Observability"
PROCESS = "Process"
LIMITS = "Limits (0 means unlimited)"

DURATION = "iam.amazonaws.com/session-duration"
"""Pod annotation: life of its session, whole seconds (`7200`) or a Go duration (`2h`)."""
POLICY_ARNS = "iam.amazonaws.com/session-policy-arns"
"""Pod annotation: managed policies that narrow its session, between commas or as a JSON array."""

_OF_PODS = {DURATION: "the session's duration", POLICY_ARNS: "the session's policies"}
_OF_NAMESPACES = {
    "iam.amazonaws.com/default-role": "the namespace's default role",
    "iam.amazonaws.com/allowed-session-tags": "the tags that its pods may set",
    "iam.amazonaws.com/imdsv2": "whether its pods must send tokens",
}
_TAKEN = (("iam_role_key", _OF_PODS), ("iam_external_id", _OF_PODS), ("namespace_key", _OF_NAMESPACES))
"""Settings that name an annotation, and the annotations with fixed names beside it: what each of these says."""

_MINUTE = 60.0
_HOUR = 3600.0
_SHORTEST_SESSION = 15 * _MINUTE
_LONGEST_SESSION = 12 * _HOUR
_LONGEST_SHOWN = 100
_LEVELS = {"trace": "debug", "warn": "warning", "fatal": "error", "panic": "error"}
_RESTRICTIONS = dict.fromkeys(("1", "t", "true"), "on") | dict.fromkeys(("0", "f", "false"), "off")
_MOST_TAGS = 50
_EXCLUSIVE = (("base_role_arn", "auto_discover_base_arn"), ("default_role", "auto_discover_default_role"))


class SettingsError(ValueError):
    """A setting that cannot be used. The message is one line that names it, its value and what is allowed."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the agent was told. Durations are seconds; consistent by construction (SettingsError)."""

    kubeconfig: str = flag(
        "", FILE, group=KUBERNETES, help="Kubeconfig file to use instead of the pod's service account."
    )
    api_server: str = flag(
        "", optional(URL), group=KUBERNETES, help="API server to use instead of the cluster's own; http is allowed."
    )
    api_token: str = flag("", TOKEN, group=KUBERNETES, secret=True, help="Bearer token for --api-server.")
    insecure: bool = switch(
        group=KUBERNETES,
        help="Do not verify the API server's certificate (with --kubeconfig or --api-server).",
    )
    node: str = flag(
        "",
        optional(NODE),
        group=KUBERNETES,
        also=("NODE_NAME",),
        help="Name of this node: only its pods are watched. Without it the whole cluster's are.",
    )
    cache_resync_period: float = flag(
        30 * _MINUTE,
        duration(1, zero=True),
        group=KUBERNETES,
        help="Time between full listings that make up for anything the watch may have lost; 0 for never.",
    )
    resolve_duplicate_cache_ips: bool = switch(
        group=KUBERNETES, help="Ask the API server where two live pods claim one address."
    )

    app_port: int = flag(8181, PORT, group=PODS, help="Port to which the pods' metadata requests are redirected.")
    metadata_addr: str = flag(
        "169.254.169.254:80",
        ENDPOINT,
        group=PODS,
        help="The real metadata service. Moves only what the agent asks, never the redirect.",
    )
    imdsv2: str = flag(
        "optional",
        choice("optional", "required"),
        group=PODS,
        help="Whether pods must send IMDSv2 tokens; a namespace's annotation iam.amazonaws.com/imdsv2 overrides it.",
    )
    imdsv2_hop_limit: int = flag(
        0, number(0, 255), group=PODS, help="IP time-to-live of replies that carry a token; 0 for the system's."
    )
    metadata_allow: tuple[str, ...] = flag(
        (),
        REGEXPS,
        group=PODS,
        help="Further paths of the metadata service that pods may read, such as meta-data/tags/instance/.*; "
        "may be repeated, in the environment with white space between.",
    )
    metadata_deny: tuple[str, ...] = flag(
        (), REGEXPS, group=PODS, help="Paths that pods may not read; wins over what is allowed. May be repeated."
    )
    backoff_max_interval: float = flag(
        1.0,
        duration(),
        group=PODS,
        help="Accepted for Go kube2iam's sake, without effect: nothing is polled.",
    )
    backoff_max_elapsed_time: float = flag(
        2.0,
        duration(),
        group=PODS,
        help="Longest wait of a request, for its pod's address and for STS together; never above 800ms, "
        "where SDKs give up.",
    )

    base_role_arn: str = flag(
        "",
        optional(BASE_ARN),
        group=ROLES,
        help="Completes roles given by name: arn:aws:iam::123456789012:role/ or with a path.",
    )
    auto_discover_base_arn: bool = switch(group=ROLES, help="Take the base ARN from the node's instance profile.")
    auto_discover_default_role: bool = switch(
        group=ROLES, help="Take the default role (and the base ARN) from the node's instance profile."
    )
    default_role: str = flag(
        "", optional(ROLE), group=ROLES, help="Role of pods that ask for none; exempt from namespace restrictions."
    )
    iam_role_key: str = flag(
        "iam.amazonaws.com/role", ANNOTATION, group=ROLES, help="Pod annotation that names the role."
    )
    iam_external_id: str = flag(
        "iam.amazonaws.com/external-id",
        optional(ANNOTATION),
        group=ROLES,
        help="Pod annotation that holds the external ID for AssumeRole.",
    )
    namespace_key: str = flag(
        "iam.amazonaws.com/allowed-roles",
        ANNOTATION,
        group=ROLES,
        help="Namespace annotation that lists the roles its pods may have, as a JSON array.",
    )
    namespace_restrictions: str = flag(
        "off",
        choice("off", "on", "report-only", bare="on", aliases=_RESTRICTIONS),
        group=ROLES,
        help="Give a pod only the roles that its namespace lists. The flag alone, or true, means on; "
        "report-only gives them and says what on would refuse.",
    )
    namespace_restriction_format: str = flag(
        "glob",
        choice("glob", "regexp"),
        group=ROLES,
        help="How namespaces write what they allow; both match the whole ARN.",
    )
    namespace_default_roles: bool = switch(
        group=ROLES,
        help="Read a namespace's annotation iam.amazonaws.com/default-role for its pods that ask for none.",
    )

    iam_role_session_ttl: float | None = flag(
        None,
        optional(duration(_SHORTEST_SESSION / 2, _LONGEST_SESSION / 2), None),
        group=CREDENTIALS,
        help="As in Go kube2iam: credentials are kept this long, and asked for twice as long. "
        "Leave it out to use --iam-role-session-duration.",
    )
    iam_role_session_duration: float = flag(
        _HOUR,
        duration(_SHORTEST_SESSION, _LONGEST_SESSION),
        group=CREDENTIALS,
        help="Life of a session that STS is asked for; refreshed at half of it. STS grants more than 1h only where the "
        "agent itself does not use a role's session, which an instance profile is.",
    )
    iam_role_error_ttl: float = flag(
        10.0,
        duration(),
        group=CREDENTIALS,
        help="How long a refusal by STS is remembered at first (it grows to 1m); 0 for not at all.",
    )
    prefetch: bool = switch(
        default=True, group=CREDENTIALS, help="Obtain a pod's credentials as soon as it is scheduled here."
    )
    region: str = flag(
        "",
        optional(REGION),
        group=CREDENTIALS,
        help="Region of STS. Else AWS_REGION, AWS_DEFAULT_REGION or the metadata service says.",
    )
    use_regional_sts_endpoint: bool = switch(
        group=CREDENTIALS, help="Accepted for Go kube2iam's sake: the regional endpoint is always used."
    )
    assume_role_arn: str = flag(
        "",
        optional(ROLE_ARN),
        group=CREDENTIALS,
        help="Role to assume first, so that the node needs the right to assume no other.",
    )
    session_name: str = flag(
        "{node}",
        template(TEMPLATE_FIELDS),
        group=CREDENTIALS,
        help="Role session name, as CloudTrail shows it. With {namespace}.{pod} each pod has a session of its own.",
    )
    cluster_name: str = flag(
        "", optional(CLUSTER), group=CREDENTIALS, help="Name of this cluster, for {cluster} and session tags."
    )
    session_tags: bool = switch(
        group=CREDENTIALS,
        help="Send the session tags of EKS Pod Identity (kubernetes-namespace, ...); trust policies must allow "
        "sts:TagSession.",
    )
    session_tag_prefix: str = flag(
        "iam.amazonaws.com/session-tag.",
        ANNOTATION_PREFIX,
        group=CREDENTIALS,
        help="Pod annotations that begin so are session tags too, if their namespace allows the key in "
        "iam.amazonaws.com/allowed-session-tags.",
    )
    transitive_session_tags: tuple[str, ...] = flag(
        (), TAG_KEYS, group=CREDENTIALS, help="Session tags that persist through role chaining. May be repeated."
    )
    source_identity: str = flag(
        "",
        template(TEMPLATE_FIELDS),
        group=CREDENTIALS,
        help="Source identity of sessions; trust policies must allow sts:SetSourceIdentity.",
    )

    iptables: bool = switch(group=REDIRECT, help="Put the redirect into the kernel and keep it there. Needs --host-ip.")
    redirect_backend: str = flag(
        "auto",
        choice("auto", "nft", "legacy", "none"),
        group=REDIRECT,
        help="What writes the redirect: nft, legacy (iptables), auto (as the node's other rules) or none.",
    )
    host_interface: str = flag(
        "docker0",
        INTERFACES,
        group=REDIRECT,
        help="Interfaces from which pods come: names, cali+ for all that begin so, !eth0 for all others, "
        "commas between; or auto.",
    )
    host_ip: tuple[str, ...] = flag(
        (),
        ADDRESSES,
        group=REDIRECT,
        also=("HOST_IPS", "HOST_IP"),
        help="This node's addresses, to which the redirect leads: IPv4, IPv6 or both.",
    )
    redirect_check_period: float = flag(
        10.0, duration(0.1, _HOUR), group=REDIRECT, help="Time between checks that the redirect is still there."
    )
    redirect_on_exit: str = flag(
        "keep",
        choice("keep", "remove"),
        group=REDIRECT,
        help="What becomes of the redirect when the agent stops. Kept, pods cannot reach the node's role meanwhile.",
    )

    metrics_port: int | None = flag(
        None,
        optional(PORT, None),
        group=OBSERVABILITY,
        help="Port for metrics, probes and /debug. Not given: --app-port, where they answer whoever asks the node's "
        "own address (pods too, never through 169.254.169.254), without /debug.",
    )
    debug: bool = switch(group=OBSERVABILITY, help="Serve /debug/store: which pod has which role.")
    log_format: str = flag("text", choice("text", "json"), group=OBSERVABILITY, help="How log lines are written.")
    log_level: str = flag(
        "info",
        choice("debug", "info", "warning", "error", aliases=_LEVELS),
        group=OBSERVABILITY,
        help="Least severe messages to write.",
    )
    verbose: bool = switch(group=OBSERVABILITY, help="The same as --log-level=debug.")
    version: bool = switch(
        group=OBSERVABILITY,
        environment=False,
        help="Print the version and stop. Not read from a variable.",
    )

    state_dir: str = flag(
        "/run/kube2iam",
        FOLDER,
        group=PROCESS,
        help="Folder on the node for the key of IMDSv2 tokens, so that they outlive a restart.",
    )

    max_request_line: int = flag(
        8192, number(256, zero=True), group=LIMITS, help="Bytes of a request line; above: 414."
    )
    max_header_bytes: int = flag(
        16384, number(1024, zero=True), group=LIMITS, help="Bytes of a request's headers; above: 431."
    )
    max_headers: int = flag(64, number(16, zero=True), group=LIMITS, help="Headers of a request; above: 431.")
    max_body_bytes: int = flag(1024, number(), group=LIMITS, help="Bytes of a request's body; above: 413.")
    header_timeout: float = flag(10.0, duration(1, zero=True), group=LIMITS, help="Time for a request to arrive.")
    idle_timeout: float = flag(
        75.0, duration(1, zero=True), group=LIMITS, help="Time that a connection may stay without a request."
    )
    max_connections: int = flag(16384, number(), group=LIMITS, help="Connections of all pods.")
    max_connections_per_pod: int = flag(512, number(), group=LIMITS, help="Connections of one pod.")
    max_request_rate: float = flag(
        100.0,
        RATE,
        group=LIMITS,
        help="Requests per second and pod that cost something (not what is answered from memory); above: 503.",
    )
    max_held: int = flag(2048, number(), group=LIMITS, help="Requests of all pods that wait for an answer.")
    max_held_per_pod: int = flag(256, number(), group=LIMITS, help="Requests of one pod that wait for an answer.")

    def __post_init__(self) -> None:
        for problem in chain(_contradictions(self), _gaps(self)):
            raise SettingsError(problem)

    @classmethod
    def from_texts(cls, given: Mapping[str, Sequence[str]], environment: Mapping[str, str]) -> Self:
        """The settings in flags (by field, every text given, in order), else in environment variables, else defaults.

        A flag that is given, even empty, beats the environment; an empty variable, and one that Kubernetes sets for a
        Service, counts as unset. Raises SettingsError.
        """
        values: dict[str, Any] = {}
        for row in rows():
            texts, origin = given.get(row.field, ()), row.name
            if not texts:
                origin = next((name for name in row.environment if _is_set(name, environment)), "")
                texts = [environment[origin]] if origin else ()
            for text in texts:
                value = _read(row, text, origin)
                values[row.field] = values.get(row.field, ()) + value if row.kind.repeatable else value
        return cls(**values)

    @property
    def metrics_port_or_app(self) -> int:
        """The port of metrics and probes: the pods' own where none is given."""
        return self.app_port if self.metrics_port is None else self.metrics_port

    @property
    def node_or_host(self) -> str:
        """The node's name; this host's where it was not given."""
        return self.node or socket.gethostname()

    @property
    def session_duration(self) -> int:
        """Seconds that STS is asked for, where a pod's annotation does not say otherwise."""
        ttl = self.iam_role_session_ttl
        return int(self.iam_role_session_duration if ttl is None else 2 * ttl)

    def cautions(self) -> tuple[str, ...]:
        """What is accepted but is probably not what was meant; one sentence each, for the log."""
        return tuple(_doubts(self))


@cache
def rows() -> tuple[Flag, ...]:
    """The table: every setting in the order of the help."""
    return table(Settings)


def _is_set(name: str, environment: Mapping[str, str]) -> bool:
    text = environment.get(name, "")
    return text != "" and not is_service_link(name, text)


def _read(row: Flag, text: str, origin: str) -> Any:
    said = origin if row.secret else f"{origin} {quote(text)}"
    if text.startswith("$(") and text.endswith(")"):
        raise SettingsError(f"{said}: the container has no variable of this name; expected {row.kind.allowed}")
    try:
        return row.kind.parse(text)
    except parse.UnfitTextError as error:
        reason = "" if row.secret else f": {_shown(str(error))}"  # which may repeat the text
        raise SettingsError(f"{said} is not valid{reason}; expected {row.kind.allowed}") from None
    except ValueError:
        raise SettingsError(f"{said} is not valid; expected {row.kind.allowed}") from None


def quote(text: str) -> str:
    """`text` in quotation marks, on one line and not endless, for a message."""
    return f'"{_shown(text)}"'


def _shown(text: str) -> str:
    short = text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in short)


def _contradictions(settings: Settings) -> Iterator[str]:
    """Settings that exclude each other."""
    for one, other in _EXCLUSIVE:
        if getattr(settings, one) and getattr(settings, other):
            yield f"{_flag(one)} and {_flag(other)} exclude each other: give one of them"
    if settings.iam_role_session_ttl is not None and settings.iam_role_session_duration != _HOUR:
        yield "--iam-role-session-ttl and --iam-role-session-duration exclude each other: give one of them"
    yield from _shared_annotations(settings)
    for name in (settings.iam_role_key, settings.iam_external_id, DURATION, POLICY_ARNS):
        if settings.session_tags and name.startswith(settings.session_tag_prefix):
            yield (
                f"--session-tag-prefix {quote(settings.session_tag_prefix)} makes a tag of the annotation {name}: "
                "expected a prefix of its own such as iam.amazonaws.com/session-tag."
            )


def _shared_annotations(settings: Settings) -> Iterator[str]:
    """Annotations that would be read as two things."""
    if settings.iam_role_key == settings.iam_external_id:
        yield (
            f"--iam-role-key and --iam-external-id are both {quote(settings.iam_role_key)}: "
            "expected an annotation of its own for each"
        )
    for field, taken in _TAKEN:
        name = getattr(settings, field)
        if name in taken:
            yield f"{_flag(field)} {quote(name)} is not valid: that annotation says {taken[name]}; expected another one"


def _gaps(settings: Settings) -> Iterator[str]:
    """Settings that need another one, which is missing."""
    if settings.iptables and settings.redirect_backend != "none" and not settings.host_ip:
        yield "--iptables needs --host-ip (or the variable HOST_IP): this node's address, to which the redirect leads"
    role = quote(settings.default_role)
    if not _completable(settings):
        yield f"--default-role {role} has no account: give its whole ARN, --base-role-arn or --auto-discover-base-arn"
    for name in ("session_name", "source_identity"):
        text = getattr(settings, name)
        if "cluster" in parse.fields_of(text) and not settings.cluster_name:
            yield f"{_flag(name)} {quote(text)} needs --cluster-name"
    if not settings.session_name:
        yield '--session-name "" is not valid; expected a template such as {namespace}.{pod}'
    if settings.transitive_session_tags and not settings.session_tags:
        yield "--transitive-session-tags needs --session-tags"
    if len(settings.transitive_session_tags) > _MOST_TAGS:
        yield f"--transitive-session-tags names too many tags; expected at most {_MOST_TAGS}"


def _flag(field: str) -> str:
    return "--" + field.replace("_", "-")


def _completable(settings: Settings) -> bool:
    role = settings.default_role
    return not role or role.startswith("arn:") or bool(settings.base_role_arn) or settings.auto_discover_base_arn


def _doubts(settings: Settings) -> Iterator[str]:
    """Settings that Go kube2iam ignores in silence, so that manifests hold them, and those that weaken something."""
    if settings.kubeconfig and (settings.api_server or settings.api_token):
        yield "--api-server and --api-token are not used: --kubeconfig comes first"
    elif settings.api_token and not settings.api_server:
        yield "--api-token is not used: there is no --api-server"
    elif settings.api_token and settings.api_server.startswith("http:"):
        yield "--api-token travels unencrypted: --api-server is http"
    if settings.insecure and not (settings.kubeconfig or settings.api_server):
        yield "--insecure is not used: in a cluster the API server's certificate is always verified"
    if not settings.node:
        yield "--node is not given: every agent watches the pods of the whole cluster (set it from spec.nodeName)"
    if settings.debug and settings.metrics_port_or_app == settings.app_port:
        yield "--debug shows nothing: pods reach --app-port, so /debug/store needs another --metrics-port"
    if settings.session_tags and not settings.cluster_name:
        yield "--cluster-name is not given: sessions have no tag eks-cluster-name"

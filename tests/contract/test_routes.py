"""The table of routes: every kind of target has a row, and every row does what all rows promise."""

import inspect
from pathlib import Path

import pytest

from kube2iam.imds.allowlist import Allowlist
from kube2iam.imds.paths import Kind, parse
from kube2iam.imds.routes import ROUTES
from tests.fakes.imds import TREE, understood
from tests.fakes.pods_port import pods_port

EXAMPLES = {
    Kind.ROOT: "/",
    Kind.VERSION: "/latest/",
    Kind.TOKEN: "/latest/api/token",
    Kind.MISPLACED_TOKEN: "/1.0/api/token",
    Kind.IAM: "/latest/meta-data/iam/",
    Kind.IAM_INFO: "/latest/meta-data/iam/info",
    Kind.ROLES: "/latest/meta-data/iam/security-credentials/",
    Kind.CREDENTIALS: "/latest/meta-data/iam/security-credentials/pod-role",
    Kind.METADATA: "/latest/meta-data/instance-id",
    Kind.LISTING: "/latest/meta-data/",
    Kind.NOT_FOUND: "/latest/user-data",
}


def test_every_kind_has_a_row_and_an_example() -> None:
    assert set(ROUTES) == set(EXAMPLES) == set(Kind) - {Kind.ADMIN}
    for kind, example in EXAMPLES.items():
        assert parse(example.encode(), Allowlist()).kind is kind


@pytest.mark.parametrize("kind", ROUTES, ids=lambda kind: kind.value)
def test_every_row_says_what_it_does(kind: Kind) -> None:
    route = ROUTES[kind]
    assert route.handler.endswith("Handler")
    assert inspect.getdoc(route.function)
    assert {b"GET", b"HEAD"} <= route.methods <= {b"GET", b"HEAD", b"PUT"}
    assert (b"PUT" in route.methods) is not route.needs_token


@pytest.mark.parametrize("kind", ROUTES, ids=lambda kind: kind.value)
async def test_every_row_is_counted_under_its_name(tmp_path: Path, kind: Kind) -> None:
    async with pods_port(str(tmp_path)) as port:
        answer = await port.get(EXAMPLES[kind])
        assert port.counted.seen == {(ROUTES[kind].handler, "GET", answer.status): 1}


def test_every_value_of_the_tree_is_either_a_row_or_withheld() -> None:
    """A control of the fake: that which it holds beyond the rows is what must never be seen."""
    withheld = {path for path, _ in TREE.items() if Allowlist().check(path) is None}
    assert {path.split("/")[0] for path in withheld} == {"meta-data", "dynamic", "user-data"}
    assert all("canary" in TREE[path].lower() for path in withheld)
    assert understood("/latest/meta-data/placement/..;/IAM%2fINFO") == "meta-data/iam/info"

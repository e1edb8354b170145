"""The keeper against a scripted kernel, and the table of backends."""

import asyncio
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from kube2iam.redirect import legacy
from kube2iam.redirect.backends import AUTO, BACKENDS, choose, others
from kube2iam.redirect.keeper import RedirectKeeper
from kube2iam.redirect.routes import Route, automatic, follow
from kube2iam.redirect.rule import Interfaces, MissingToolError, RedirectError, RedirectRule, Status
from kube2iam.settings import rows

RULE = RedirectRule.of(("10.0.0.1",), 8181, "docker0")
OTHER_RULE = RedirectRule.of(("10.0.0.1",), 8182, "docker0")


@dataclass
class Kernel:
    """A backend that answers as scripted: what had to be mended, or an error."""

    answers: list[str | RedirectError] = field(default_factory=list)
    asked: list[RedirectRule] = field(default_factory=list)
    left: bool = False
    broken: bool = False
    name: str = "scripted"

    def require(self) -> None:
        """Works everywhere."""

    async def ensure(self, rule: RedirectRule) -> str:
        self.asked.append(rule)
        answer = self.answers.pop(0) if self.answers else ""
        if isinstance(answer, RedirectError):
            raise answer
        return answer

    async def remove(self) -> bool:
        if self.broken:
            raise RedirectError("no")
        left, self.left = self.left, False
        return left

    async def status(self) -> Status:
        return Status(present=True)


@dataclass
class Drifts:
    count: int = 0

    def redirect_drift(self) -> None:
        self.count += 1


def keeper_of(kernel: Kernel, drifts: Drifts, rules: Sequence[RedirectRule] = (RULE,)) -> RedirectKeeper:
    """A keeper that is given `rules` in turn, the last one for ever."""
    coming = list(rules)
    return RedirectKeeper(kernel, lambda: coming.pop(0) if len(coming) > 1 else coming[0], period=10.0, metrics=drifts)


async def test_putting_it_there_first_is_no_drift_and_putting_it_back_is() -> None:
    drifts = Drifts()
    keeper = keeper_of(Kernel(["missing", "", "missing", ""]), drifts)
    assert not keeper.present
    seen = [(await keeper.ensure(), keeper.present, drifts.count) for _ in range(4)]
    assert seen == [(True, True, 0), (True, True, 0), (True, True, 1), (True, True, 1)]


async def test_a_rule_that_we_change_ourselves_is_no_drift() -> None:
    drifts, kernel = Drifts(), Kernel(["missing", "different"])
    keeper = keeper_of(kernel, drifts, [RULE, OTHER_RULE])
    await keeper.ensure()
    await keeper.ensure()
    assert (drifts.count, kernel.asked) == (0, [RULE, OTHER_RULE])


async def test_failures_are_said_once_each_and_survived(caplog: pytest.LogCaptureFixture) -> None:
    kernel = Kernel([RedirectError("a"), RedirectError("a"), RedirectError("b"), "missing", RedirectError("b"), ""])
    keeper = keeper_of(kernel, Drifts())
    with caplog.at_level(logging.INFO, "kube2iam"):
        seen = [(await keeper.ensure(), keeper.present, keeper.last_error) for _ in range(6)]
    assert seen == [
        (False, False, "a"),
        (False, False, "a"),
        (False, False, "b"),
        (True, True, None),
        (False, False, "b"),
        (True, True, None),
    ]
    said = [(record.levelname, record.getMessage(), vars(record).get("error")) for record in caplog.records]
    assert said == [
        ("ERROR", "redirect cannot be kept", "a"),
        ("ERROR", "redirect cannot be kept", "b"),
        ("INFO", "redirect in place", None),
        ("ERROR", "redirect cannot be kept", "b"),
        ("INFO", "redirect can be checked again", None),
    ]


async def test_it_looks_again_after_a_period_and_sooner_after_a_failure() -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 4:
            raise asyncio.CancelledError

    kernel = Kernel(["missing", RedirectError("busy"), RedirectError("busy"), ""])
    keeper = RedirectKeeper(kernel, lambda: RULE, period=10.0, metrics=Drifts(), sleep=sleep)
    with pytest.raises(asyncio.CancelledError):
        await keeper.run()
    assert pauses == [10.0, 1.0, 1.0, 10.0]


async def test_removal_at_the_end() -> None:
    kernel = Kernel(left=True)
    keeper = keeper_of(kernel, Drifts())
    await keeper.ensure()
    await keeper.remove()
    assert (keeper.present, kernel.left) == (False, False)


async def test_a_removal_that_fails_does_not_stop_the_agent_from_stopping() -> None:
    keeper = keeper_of(Kernel(broken=True), Drifts())
    await keeper.remove()
    assert keeper.last_error == "no"


async def test_leftovers_of_other_backends_are_cleared_after_ours_stands() -> None:
    refusing, left, broken = Kernel([RedirectError("no")]), Kernel(left=True), Kernel(broken=True)
    keeper = RedirectKeeper(refusing, lambda: RULE, period=1.0, metrics=Drifts(), leftovers=[broken, left])
    await keeper.ensure()
    assert left.left, "while ours cannot be written, an older one is better than none"
    assert await keeper.ensure()
    assert not left.left


# The table of backends


def test_every_backend_can_be_named_by_the_flag() -> None:
    (row,) = [row for row in rows() if row.field == "redirect_backend"]
    for name in (AUTO, *BACKENDS):
        assert row.kind.parse(name) == name
        assert name in row.kind.allowed


@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_knows_its_name_and_its_rivals(name: str) -> None:
    backend = BACKENDS[name]()
    assert backend.name == name
    rivals = {rival.name for rival in others(backend)}
    assert rivals == (set() if name == "none" else set(BACKENDS) - {name, "none"})


async def test_none_leaves_the_kernel_alone() -> None:
    backend = await choose("none")
    assert await backend.ensure(RULE) == ""
    assert not await backend.remove()
    assert not (await backend.status()).present


async def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingToolError, match="install the package nftables"):
        await choose("nft")


async def test_without_python_iptables_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    legacy._library.cache_clear()
    monkeypatch.setitem(sys.modules, "iptc", None)
    with pytest.raises(MissingToolError, match=r"install kube2iam\[legacy\] and the package iptables"):
        await choose("legacy")
    assert (await choose("nft")).name == "nft", "everything else works without it"
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingToolError, match="nft is not installed"):
        await choose("auto")


async def test_auto_takes_the_one_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(legacy, "in_use", lambda: False)
    assert (await choose("auto")).name == "nft"
    monkeypatch.setenv("PATH", "/nowhere")
    assert (await choose("auto")).name == "legacy"


# What auto means


ROUTES = {
    "192.0.2.1": Route("eth0", direct=False),
    "10.0.0.7": Route("eni7", direct=True),
    "10.0.0.8": Route("eth0", direct=False),
    "10.0.0.9": Route("eth0", direct=True),
}


@pytest.mark.parametrize(
    ("pods", "redirected"),
    [
        ((), {"eth0": False, "eni1": True, "lo": False}),
        (("10.0.0.7",), {"eth0": False, "eni1": True, "lo": False}),
        (("10.0.0.8", "192.168.0.1"), {"eth0": False, "eni1": True}),
        (("10.0.0.7", "10.0.0.9"), {"eth0": True, "eni1": True, "lo": False}),
    ],
)
def test_auto_is_all_but_the_uplinks(pods: tuple[str, ...], redirected: dict[str, bool]) -> None:
    interfaces = automatic(Interfaces.parse("auto"), pods, ROUTES.get)
    assert {name: interfaces.matches(name) for name in redirected} == redirected


def test_auto_redirects_everything_while_nothing_is_known() -> None:
    interfaces = automatic(Interfaces.parse("auto"), ("10.0.0.7",), lambda _: None)
    assert interfaces.matches("eth0")
    assert not interfaces.matches("lo")


def test_named_interfaces_are_not_looked_up() -> None:
    def pods() -> tuple[str, ...]:
        raise AssertionError("nobody needs to know")

    assert follow(RULE, pods)() is RULE

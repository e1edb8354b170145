"""What one pod may take."""

import resource

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube2iam.imds.limits import PodLimits, room_for_connections


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_connections_of_one_pod_and_of_all() -> None:
    limits = PodLimits(connections=5, connections_per_pod=3)
    assert [limits.connect("a") for _ in range(4)] == [True, True, True, False]
    assert [limits.connect("b") for _ in range(3)] == [True, True, False]
    limits.disconnect("a")
    assert limits.connect("b")
    assert limits.connections == 5


def test_held_of_one_pod_and_of_all() -> None:
    limits = PodLimits(held=5, held_per_pod=3)
    assert [limits.hold("a") for _ in range(4)] == [True, True, True, False]
    assert [limits.hold("b") for _ in range(3)] == [True, True, False]
    limits.release("b")
    assert limits.hold("c")
    assert limits.held == 5


def test_strangers_leave_half_to_pods() -> None:
    limits = PodLimits(connections=8, held=6)
    assert sum(limits.connect(str(number), stranger=True) for number in range(20)) == 4
    assert sum(limits.hold(str(number), stranger=True) for number in range(20)) == 3
    assert sum(limits.connect(f"pod-{number}") for number in range(20)) == 4
    assert sum(limits.hold(f"pod-{number}") for number in range(20)) == 3
    limits.disconnect("0", stranger=True)
    limits.release("0", stranger=True)
    assert limits.connect("21", stranger=True)
    assert limits.hold("21", stranger=True)


def test_bytes_that_wait_are_bounded_for_each_party() -> None:
    limits = PodLimits()
    assert limits.keep("a", 4 << 20)
    assert limits.keep("b", 1)
    assert not limits.keep("a", 1)
    assert limits.keep("a", -(4 << 20))
    assert limits.keep("b", -1)
    assert limits._kept == {}


def test_rate_allows_five_seconds_worth_at_once() -> None:
    clock = Clock()
    limits = PodLimits(rate=10, clock=clock)
    assert sum(limits.hold("a") for _ in range(100)) == 50
    assert limits.hold("b")
    clock.now += 0.125
    assert [limits.hold("a"), limits.hold("a")] == [True, False]
    clock.now += 100
    assert sum(limits.hold("a") for _ in range(100)) == 50


def test_a_rate_below_one_a_second_still_lets_one_through() -> None:
    clock = Clock()
    limits = PodLimits(rate=0.1, clock=clock)
    assert [limits.hold("a"), limits.hold("a")] == [True, False]
    clock.now += 10
    assert limits.hold("a")


def test_zero_is_no_limit() -> None:
    limits = PodLimits()
    assert all(limits.connect("a") and limits.hold("a") for _ in range(10_000))


def test_what_is_refused_counts_nowhere() -> None:
    limits = PodLimits(connections_per_pod=1, held_per_pod=1, rate=1)
    assert limits.connect("a")
    assert limits.hold("a")
    for _ in range(10):
        assert not limits.connect("a")
        assert not limits.hold("a")
    assert (limits.connections, limits.held) == (1, 1)


def test_idle_addresses_are_forgotten() -> None:
    clock = Clock()
    limits = PodLimits(rate=10, clock=clock)
    for number in range(1000):
        address = f"10.0.{number // 250}.{number % 250}"
        assert limits.connect(address)
        assert limits.hold(address)
        limits.release(address)
        limits.disconnect(address)
    limits.sweep()
    assert (len(limits._connections), len(limits._held), len(limits._buckets)) == (0, 0, 1000)
    clock.now += 0.2
    limits.sweep()
    assert len(limits._buckets) == 0


def test_buckets_are_bounded() -> None:
    limits = PodLimits(rate=10, clock=Clock())
    for number in range(70_000):
        limits.hold(str(number))
        limits.release(str(number))
    assert len(limits._buckets) == 65_536
    assert "69999" in limits._buckets


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 3)), max_size=200))
def test_never_more_than_the_rate_and_its_burst(asked: list[tuple[str, float]]) -> None:
    clock = Clock()
    limits = PodLimits(rate=10, clock=clock)
    begun, given_to_a = clock.now, 0
    for address, pause in asked:
        clock.now += pause
        given_to_a += limits.hold(address) and address == "a"
    assert given_to_a <= 50 + 10 * (clock.now - begun) + 1e-6


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "room", "raised"),
    [
        (1024, 4096, 512, 512, 1024),
        (1024, 4096, 2000, 2000, 2256),
        (1024, 4096, 16_384, 3840, 4096),
        (1024, 4096, 0, 3840, 4096),
        (100, 100, 512, 50, 100),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 512, 512, resource.RLIM_INFINITY),
    ],
)
def test_room_for_connections(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, wanted: int, room: int, raised: int
) -> None:
    now = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _which: now[0])
    monkeypatch.setattr(resource, "setrlimit", lambda _which, limits: now.__setitem__(0, limits))
    assert room_for_connections(wanted) == room
    assert now == [(raised, hard)]

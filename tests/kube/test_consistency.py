"""Whatever breaks in between, the index ends up equal to the cluster."""

import asyncio
import json
from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes.kube import Answer, Asked, FakeApiServer, Raw, error, event, pod, refusal
from tests.fakes.virtual_time import virtual_time
from tests.kube.following import following


@dataclass
class Cluster(FakeApiServer):
    """Pods that change, and an API server that answers truly or with a fault, as its plan says."""

    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.now: dict[str, Raw] = {}
        self.history: list[Raw] = []
        self.backup: tuple[dict[str, Raw], list[Raw]] = {}, []

    def save(self) -> None:
        self.backup = dict(self.now), list(self.history)

    def restore(self) -> None:
        """Etcd is as it was: versions that the agent has seen don't exist, and are given out again."""
        self.now, self.history = dict(self.backup[0]), list(self.backup[1])

    def change(self, action: str, name: str, number: int) -> None:
        version = str(len(self.history) + 1)
        old = self.now.get(name)
        if action == "delete":
            if old is None:
                return
            raw, kind = old, "DELETED"
            del self.now[name]
        elif action == "unreadable" and old is not None:
            raw, kind = pod(name, uid=old["metadata"]["uid"], status={"podIP": "?"}), "MODIFIED"
            self.now[name] = raw
        else:
            kind = "MODIFIED" if old else "ADDED"
            uid = old["metadata"]["uid"] if old else f"{name}-{version}"
            raw = pod(name, uid=uid, ip=f"10.0.0.{number}")
            self.now[name] = raw
        raw = raw | {"metadata": raw["metadata"] | {"resourceVersion": version}}
        self.history.append(event(kind, raw))

    def expected(self) -> dict[str, str]:
        return {
            raw["metadata"]["uid"]: raw["status"]["podIP"] for raw in self.now.values() if raw["status"]["podIP"] != "?"
        }

    def _next(self, asked: Asked) -> Answer:
        fault = self.faults.pop(0) if self.faults else ""
        if fault.startswith("http-"):
            return refusal(int(fault.removeprefix("http-")))
        version = asked.query.get("resourceVersion", "0")
        if int(version) > len(self.history) and not asked.watch:
            return refusal(504, f"Timeout: Too large resource version: {version}, current: {len(self.history)}")
        if not asked.watch:
            page = {"metadata": {"resourceVersion": str(len(self.history))}, "items": list(self.now.values())}
            return Answer(pieces=[json.dumps(page).encode()], then="reset" if fault == "reset" else "eof")
        lines = [json.dumps(item).encode() + b"\n" for item in self.history[int(version) :]]
        text = b"".join(lines)
        broken = {
            "reset": Answer(pieces=lines[: len(lines) // 2], then="reset"),
            "half": Answer(pieces=[text[: len(text) * 2 // 3]]),
            "gone": Answer(pieces=[*lines[:1], json.dumps(error(410)).encode() + b"\n"]),
            "garbage": Answer(pieces=[*lines[:1], b"garbage\n"]),
        }
        return broken.get(fault, Answer(pieces=lines, then="hang"))


FAULTS = st.lists(
    st.sampled_from(
        ["", "reset", "half", "gone", "garbage", *(f"http-{code}" for code in (400, 403, 410, 422, 429, 500, 504))]
    ),
    max_size=8,
)
CHANGES = st.lists(
    st.tuples(st.sampled_from(["set", "set", "delete", "unreadable"]), st.sampled_from("abc"), st.integers(1, 9)),
    max_size=6,
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rounds=st.lists(CHANGES, min_size=1, max_size=3), faults=FAULTS)
def test_the_index_becomes_what_the_cluster_is(rounds: list[list[tuple[str, str, int]]], faults: list[str]) -> None:
    @virtual_time
    async def run() -> None:
        async with Cluster(faults=faults) as cluster, following(cluster.url, silence=30.0) as here:
            for changes in rounds:
                for change in changes:
                    cluster.change(*change)
                await asyncio.sleep(60)
            await asyncio.sleep(300)
            assert {known.uid: known.ips[0] for known in here.index.pods()} == cluster.expected()

    run()


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(before=CHANGES, lost=CHANGES, after=CHANGES, faults=FAULTS)
def test_a_cluster_that_is_put_back_is_followed_from_the_next_list_on(
    before: list[tuple[str, str, int]],
    lost: list[tuple[str, str, int]],
    after: list[tuple[str, str, int]],
    faults: list[str],
) -> None:
    @virtual_time
    async def run() -> None:
        async with Cluster() as cluster, following(cluster.url, silence=30.0, resync=600.0) as here:
            for change in before:
                cluster.change(*change)
            cluster.save()
            for change in lost:
                cluster.change(*change)
            await asyncio.sleep(60)
            cluster.restore()
            cluster.faults = list(faults)
            for change in after:
                cluster.change(*change)
            await asyncio.sleep(3600)
            assert {known.uid: known.ips[0] for known in here.index.pods()} == cluster.expected()

    run()

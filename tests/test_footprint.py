"""What the agent may take of a full node's memory."""

from tests.bench.footprint import BARS, BEFORE, WARM, ask_for_all
from tests.bench.node import full_node


async def test_memory_of_a_full_node_stays_below_its_bars() -> None:
    async with full_node() as around, around.agent("--prefetch=false") as agent:
        assert agent.resident_mib < BARS[BEFORE]
        await ask_for_all(agent)
        assert agent.resident_mib < BARS[WARM]

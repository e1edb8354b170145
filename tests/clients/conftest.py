"""What the clients' lane shares: the node, built once, and the table at its end."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.clients.builds import CLIENTS, Client, LaneError, build_all, check
from tests.clients.node import Node, node, own_network

SCENARIOS = ("warm", "cold", "address late", "STS 1.5 s", "v1 off", "new role", "restart", "no role")
TABLE = pytest.StashKey[dict[tuple[str, str], str]]()


def role(client: Client, scenario: str) -> str:
    """The role of the client's pod in a scenario: one that nobody has asked for before."""
    return f"{client.folder}-{scenario.replace(' ', '-')}"


class Table:
    """The result of each client in each scenario."""

    def __init__(self, cells: dict[tuple[str, str], str]) -> None:
        self._cells = cells

    def put(self, client: Client, scenario: str, seconds: float) -> None:
        """Note how long it took."""
        self._cells[client.name, scenario] = f"{seconds:.2f}"


@pytest.fixture(scope="session")
def table(pytestconfig: pytest.Config) -> Table:
    return Table(pytestconfig.stash.setdefault(TABLE, {}))


@pytest.fixture(scope="session")
def programs(request: pytest.FixtureRequest) -> None:
    """Build the programs of the clients that are to be tried, saying so; ends the lane where it can't run."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    functions = [item for item in request.session.items if isinstance(item, pytest.Function)]
    wanted = [client for client in CLIENTS if any(item.callspec.params["client"] is client for item in functions)]

    def say(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\n{text}", end="", flush=True)  # noqa: T201  # minutes may pass

    try:
        check(wanted)
        build_all(wanted, say)
    except LaneError as error:
        pytest.exit(str(error), returncode=1)


@pytest.fixture(scope="session")
def _own_network(programs: None) -> Iterator[None]:
    with own_network():
        yield


@pytest_asyncio.fixture(scope="session", loop_scope="session", name="node")
async def _node(_own_network: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    scratch: Path = tmp_path_factory.mktemp("clients")
    roles = [role(client, scenario) for client in CLIENTS for scenario in (*SCENARIOS, "next")]
    async with node(scratch, CLIENTS, roles) as made:
        yield made


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    cells = config.stash.get(TABLE, {})
    if not cells:
        return
    terminalreporter.section("seconds from the question to the answer")
    terminalreporter.write_line("".join([f"{'':15}", *(f"{name:>14}" for name in SCENARIOS)]))
    for client in CLIENTS:
        row = (f"{cells.get((client.name, name), '-'):>14}" for name in SCENARIOS)
        terminalreporter.write_line("".join([f"{client.name:15}", *row]))

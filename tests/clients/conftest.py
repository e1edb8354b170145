"""What the clients' lane shares: the node, built once, and the table at its end."""

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.clients.builds import CLIENTS, LaneError, build_all, check
from tests.clients.node import Node, node, own_network
from tests.clients.results import SCENARIOS, Table, role

TABLE = pytest.StashKey[Table]()


@pytest.fixture(scope="session")
def table(pytestconfig: pytest.Config) -> Table:
    return pytestconfig.stash.setdefault(TABLE, Table())


@pytest.fixture(scope="session")
def programs(request: pytest.FixtureRequest) -> None:
    """Build the programs of the clients that are to be tried, saying so; ends the lane where it can't run."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    functions = [item for item in request.session.items if isinstance(item, pytest.Function)]
    wanted = [client for client in CLIENTS if any(item.callspec.params["client"] is client for item in functions)]

    def say(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(text, flush=True)  # noqa: T201  # minutes may pass

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
    roles = [role(client, scenario) for client in CLIENTS for scenario in (*SCENARIOS, "next")]
    async with node(tmp_path_factory.mktemp("clients"), CLIENTS, roles) as made:
        yield made


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash.get(TABLE, Table()).lines()
    if lines:
        terminalreporter.section("seconds from the question to the answer")
        terminalreporter.write_line("\n".join(lines))

"""The scenarios of the clients' lane, and the table of its results."""

from tests.clients.builds import CLIENTS, Client

SCENARIOS = ("warm", "cold", "address late", "STS 1.5 s", "v1 off", "new role", "restart", "no role")


def role(client: Client, scenario: str) -> str:
    """The role of the client's pod in a scenario: one that nobody has asked for before."""
    return f"{client.folder}-{scenario.replace(' ', '-')}"


class Table:
    """How long each client took in each scenario."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, str], float] = {}

    def put(self, client: Client, scenario: str, seconds: float) -> None:
        """Note a result."""
        self._seconds[client.name, scenario] = seconds

    def lines(self) -> list[str]:
        """The table as Markdown, in seconds; nothing if there is no result."""
        rows = [["client", *SCENARIOS], ["---", *("--:" for _ in SCENARIOS)]]
        rows += [[client.name, *(self._cell(client, scenario) for scenario in SCENARIOS)] for client in CLIENTS]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
        return lines if self._seconds else []

    def _cell(self, client: Client, scenario: str) -> str:
        seconds = self._seconds.get((client.name, scenario))
        return "" if seconds is None else f"{seconds:.2f}"

"""The clients' programs: how each is built, once for each state of its sources, and how it is run."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent / "programs"
REPOSITORY = Path(__file__).parents[2]
BUILT = REPOSITORY / ".cache" / "clients"
LONGEST_BUILD = 1800.0

JAVA = ("java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", "{here}/target/classes:{here}/target/lib/*")
"""Starts sooner on two cores; changes nothing that the SDK does."""


class LaneError(RuntimeError):
    """The lane can't run here; the message says what it needs."""


@dataclass(frozen=True, slots=True)
class Client:
    """A client of the metadata service: an SDK or a tool that uses one."""

    name: str
    folder: str
    run: tuple[str, ...]
    """The command; {here} is where it was built."""
    build: tuple[str, ...] = ()
    """The command that builds it, in a copy of its sources; nothing for a script that needs no more."""
    tools: tuple[str, ...] = ()
    keeps_token: bool = False
    """Whether its chain uses one IMDSv2 session token for more than one round of requests."""
    patience: float = 1.0
    """Seconds after which it cuts a request."""
    start: float = 1.0
    """Seconds that it may take until it asks, and from the answer on: its own time, on a machine with other work."""

    @property
    def sources(self) -> Path:
        """Its sources."""
        return SOURCES / self.folder

    @property
    def home(self) -> Path:
        """Where it is built."""
        return BUILT / self.folder if self.build else self.sources

    def command(self) -> list[str]:
        """What runs it, found on the PATH of the tests: a pod has none."""
        program, *arguments = (word.format(here=self.home) for word in self.run)
        return [shutil.which(program) or program, *arguments]

    def digest(self) -> str:
        """Names the state of its sources and how they are built."""
        files = sorted(path for path in self.sources.rglob("*") if path.is_file())
        parts = [f"{path.relative_to(self.sources)}\0".encode() + path.read_bytes() for path in files]
        return hashlib.sha256(b"\0".join([*parts, *map(str.encode, self.build)])).hexdigest()


NPM = ("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
MAVEN = ("mvn", "--quiet", "--batch-mode", "process-classes")

CLIENTS = (
    Client("boto3", "boto3", run=(sys.executable, "-P", "{here}/whoami.py")),
    Client("AWS CLI", "cli", run=("sh", "{here}/whoami.sh"), start=4.0),
    Client(
        "Go v2",
        "go-v2",
        run=("{here}/whoami",),
        build=("go", "build", "-o", "whoami", "."),
        tools=("go",),
        keeps_token=True,
        patience=0.5,
    ),
    Client("JavaScript v3", "js-v3", run=("node", "{here}/whoami.mjs"), build=NPM, tools=("node", "npm")),
    Client("JavaScript v2", "js-v2", run=("node", "{here}/whoami.js"), build=NPM, tools=("node", "npm")),
    Client("Java v2", "java-v2", run=(*JAVA, "WhoAmI"), build=MAVEN, tools=("java", "javac", "mvn"), start=5.0),
    Client("Java v1", "java-v1", run=(*JAVA, "WhoAmI"), build=MAVEN, tools=("java", "javac", "mvn")),
    Client(
        "Rust",
        "rust",
        run=("{here}/target/release/whoami",),
        build=("cargo", "build", "--release", "--locked", "--quiet"),
        tools=("cargo", "cc"),
        keeps_token=True,
    ),
)

PACKAGES = {
    "go": "Go 1.24 or newer",
    "node": "Node.js 20 or newer",
    "npm": "npm",
    "java": "a JDK, 11 or newer",
    "javac": "a JDK, 11 or newer",
    "mvn": "Maven",
    "cargo": "Rust 1.94 or newer",
    "cc": "a C compiler",
}


def check(clients: Iterable[Client]) -> None:
    """Raise LaneError that names all that is missing."""
    if os.geteuid():
        raise LaneError("make test-clients makes network namespaces: run it as root")
    missing = {PACKAGES[tool] for client in clients for tool in client.tools if shutil.which(tool) is None}
    if missing:
        raise LaneError(f"make test-clients needs {', '.join(sorted(missing))}")


def build_all(clients: Iterable[Client], say: Callable[[str], None]) -> None:
    """Build what is not built yet; raises LaneError if that fails."""
    for client in clients:
        if client.build:
            _build(client, say)


def _build(client: Client, say: Callable[[str], None]) -> None:
    stamp, digest = client.home / ".built-from", client.digest()
    if stamp.exists() and stamp.read_text() == digest:
        return
    say(f"building the program for {client.name} (once; the first time it fetches its SDK)")
    stamp.unlink(missing_ok=True)
    shutil.copytree(client.sources, client.home, dirs_exist_ok=True)
    done = subprocess.run(
        ["nice", *client.build], cwd=client.home, capture_output=True, text=True, check=False, timeout=LONGEST_BUILD
    )
    if done.returncode:
        raise LaneError(f"the program for {client.name} can't be built:\n{(done.stdout + done.stderr)[-3000:]}")
    stamp.write_text(digest)

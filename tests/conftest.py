"""What all tests share: the lanes that `make test` leaves to targets of their own."""

import signal
from pathlib import Path

import pytest

LANES = {"cluster": "make test-cluster", "clients": "make test-clients"}
"""Folders whose tests need what takes minutes to build; they run when their folder is named."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    tests = Path(__file__).parent
    if collection_path.parent != tests or collection_path.name not in LANES:
        return None
    named = [(config.invocation_params.dir / argument.partition("::")[0]).resolve() for argument in config.args]
    return None if any(path.is_relative_to(collection_path) for path in named) else True


def pytest_configure() -> None:
    """Take SIGTERM as Ctrl-C is taken: what a test has started ends with it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)

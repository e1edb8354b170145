"""docs/security.md names the test that shows each claim: the names must lead somewhere."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def claims() -> list[tuple[str, str]]:
    """(file, test) as the page names them; `::name` alone is in the file named before it."""
    found, file = [], ""
    for cell in re.findall(r"`((?:tests/[\w/]+\.py)?::\w+)`", (ROOT / "docs/security.md").read_text()):
        path, _, name = cell.partition("::")
        file = path or file
        found.append((file, name))
    return found


def test_every_test_that_the_page_names_exists() -> None:
    missing = [f"{file}::{name}" for file, name in claims() if f"def {name}(" not in (ROOT / file).read_text()]
    assert len(claims()) > 30
    assert missing == []

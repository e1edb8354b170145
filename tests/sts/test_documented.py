"""docs/credentials.md and the table of errors agree."""

import re
from pathlib import Path

import pytest

from kube2iam.sts.errors import TABLE, Fault, fault
from kube2iam.sts.memory import remembered

DOCS = Path(__file__).parents[2] / "docs" / "credentials.md"
CASES = {
    "any other code of STS with a 4xx status": [fault("SomethingNew", status=status) for status in (400, 403, 418)],
    "any other 429": [fault(code, status=429) for code in ("", "429", "SomethingNew")],
    "any other 5xx": [fault(code, status=status) for code in ("", "502", "SomethingNew") for status in (500, 502)],
    "any other 408": [fault(code, status=408) for code in ("", "SomethingNew")],
    "a 4xx without a code of STS": [fault(code, status=status) for code in ("", "403") for status in (403, 404, 407)],
}
"""What the table says in words."""


def rows() -> list[tuple[list[str], str, str]]:
    """The table of errors: what is in its first cell, what the pod is told, how long that is remembered."""
    found: list[tuple[list[str], str, str]] = []
    lines = DOCS.read_text().partition("## Errors")[2].partition("## ")[0].splitlines()
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 4 or "sts-pending" in line or "`" not in cells[1]:
            continue
        names = [name.strip() for name in re.sub(r"\([^)]*\)", "", cells[0]).split(",")]
        found.append((names, cells[1], found[-1][2] if cells[2] == "as above" else cells[2]))
    return found


DOCUMENTED = {name: (told, kept) for names, told, kept in rows() for name in names}
CODES = [code for row in TABLE for code in row.codes]


def agrees(found: Fault, told: str, kept: str) -> bool:
    reason = found.denial.reason
    first, most = re.findall(r"(\d+) s", kept)
    times = [remembered(found.kind, failures, error_ttl=10.0, spread=0.0) for failures in (1, 2, 20)]
    return told == f"{reason.status} `{reason.code}`" and times == [int(first), 2 * int(first), int(most)]


@pytest.mark.parametrize("code", CODES)
def test_every_code_is_documented(code: str) -> None:
    for spelt in (code, f"{code}Exception"):
        assert agrees(fault(spelt, status=400), *DOCUMENTED[code])


@pytest.mark.parametrize("name", DOCUMENTED)
def test_what_is_documented_is_so(name: str) -> None:
    assert name in CASES or name in CODES
    found = CASES.get(name) or [fault(name, status=400)]
    assert all(agrees(one, *DOCUMENTED[name]) for one in found)


def test_every_case_in_words_is_documented() -> None:
    assert set(CASES) <= set(DOCUMENTED)

"""docs/credentials.md and the table of errors agree."""

from pathlib import Path

import pytest

from kube2iam.sts.errors import Kind, fault

DOCS = Path(__file__).parents[2] / "docs" / "credentials.md"
ROWS = [line.split("|") for line in DOCS.read_text().splitlines() if line.startswith("| ") and "`" in line]
CODES = [
    (code.strip(), told)
    for _, codes, told, *_rest in ROWS
    if "sts-" in told or "node-" in told
    for code in codes.split("(")[0].split(",")
    if code.strip().isalnum() and code.strip()[0].isupper()
]


@pytest.mark.parametrize(("code", "told"), CODES)
def test_what_the_pod_is_told(code: str, told: str) -> None:
    reason = fault(code, status=400).denial.reason
    assert f"{reason.status} `{reason.code}`" in told


def test_every_kind_is_documented() -> None:
    assert {fault(code).kind for code, _told in CODES} == set(Kind)

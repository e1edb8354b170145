"""What the documents promise: links lead somewhere, and the policies to copy are those that the demo lives by."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from kube2iam.demo import cast

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in headings(target)):
            dead.append(link)
    assert dead == []


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs/install.md"], ids=lambda page: page.name)
def test_the_two_policies_are_those_of_the_demo(page: Path) -> None:
    blocks = re.findall(r"^ *```json\n(.*?)^ *```", page.read_text(), re.MULTILINE | re.DOTALL)
    node, trust = (json.loads(block)["Statement"][0] for block in blocks)
    assert list(cast.NODE_ITSELF.allow) == [node["Action"]]
    assert shape(node["Resource"]) == {shape(arn) for arn in cast.NODE_ITSELF.allow[node["Action"]]}.pop()
    for role in cast.POD_ROLES:
        assert trust["Action"] == "sts:AssumeRole"
        assert list(trust["Principal"]) == list(role.trust)
        assert shape(trust["Principal"]["AWS"]) in {shape(principal) for principal in role.trust["AWS"]}


def shape(arn: Any) -> str:
    """What kind of ARN it is."""
    return re.sub(r"\d{12}", "ACCOUNT", str(arn)).partition("/")[0]

"""How the demo shows what happened: a table for people, JSON for programs, and three things to try."""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kube2iam.demo.cast import ROLE_KEY
from kube2iam.demo.visits import Visit

GAP = "  "


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that a run found."""

    visits: Sequence[Visit]
    reasons: Mapping[str, str]
    """Full name of a pod to the agent's own sentence about it."""
    checks: Mapping[str, bool]
    """What else was to be true, in words, and whether it was."""
    seconds: float

    @property
    def right(self) -> bool:
        """Whether every pod got exactly what it should and every check held."""
        return all(self.checks.values()) and not any(visit.faults for visit in self.visits)


def as_json(outcome: Outcome) -> str:
    """One JSON object."""
    return json.dumps(
        {
            "ok": outcome.right,
            "seconds": round(outcome.seconds, 1),
            "pods": [_pod(visit, outcome.reasons) for visit in outcome.visits],
            "checks": dict(outcome.checks),
        },
        indent=2,
    )


def table(outcome: Outcome) -> str:
    """The table of pods, then the checks, at the width of the terminal."""
    heads = ("POD", "ANNOTATION", "WHAT IT GOT", "WHY", "MS")
    rows = [
        (
            visit.spec.full_name,
            visit.spec.annotation or "-",
            _got(visit),
            _why(visit, outcome.reasons),
            f"{visit.boto3.get('milliseconds', 0):.0f}",
        )
        for visit in outcome.visits
    ]
    width = min(max(shutil.get_terminal_size((140, 24)).columns, 100), 180)
    checks = [f"{'ok ' if held else 'NOT'} {text}" for text, held in outcome.checks.items()]
    faults = [f"NOT {visit.spec.full_name}: {fault}" for visit in outcome.visits for fault in visit.faults]
    return "\n".join([*_grid(heads, rows, width), "", *checks, *faults])


def things_to_try(*, pods: Mapping[str, int], node: int, sts: int, api: str, token: str) -> str:
    """Commands to paste into another terminal. `pods`, `node` and `sts` are process ids."""
    enter = _enter()
    ask = "curl -s -i http://169.254.169.254/latest/meta-data/iam/security-credentials/"
    patch = json.dumps({"metadata": {"annotations": {ROLE_KEY: "reports"}}})
    return "\n".join(
        [
            "Three things to try in another terminal:",
            "",
            "1. Be a pod and ask as any SDK does: which role, and its keys.",
            f"   {enter} -t {pods['shop/reports']} -n {ask}",
            f"   {enter} -t {pods['shop/reports']} -n {ask.replace(' -i', '')}reports",
            "",
            "2. Give the pod without a role one, and ask as that pod before and after.",
            f"   {enter} -t {pods['shop/plain']} -n {ask}",
            f"   {enter} -t {node} -n curl -s -o /dev/null -X PATCH {api}/api/v1/namespaces/shop/pods/plain \\",
            f"     -H 'Authorization: Bearer {token}' -H 'Content-Type: application/merge-patch+json' \\",
            f"     -d '{patch}'",
            "",
            "3. Stop STS, see that nobody notices (1 still answers), and let it go on.",
            f"   {_sudo()}kill -STOP {sts}",
            f"   {_sudo()}kill -CONT {sts}",
            "",
            "Ctrl-C ends it all. Below: what the agent tells the cluster.",
        ]
    )


def _pod(visit: Visit, reasons: Mapping[str, str]) -> dict[str, Any]:
    return {
        "pod": visit.spec.full_name,
        "annotation": visit.spec.annotation,
        "status": visit.status,
        "reason": visit.refusal,
        "why": _why(visit, reasons),
        "milliseconds": round(visit.boto3.get("milliseconds", 0.0), 1),
        "boto3": visit.identity,
        "aws_cli": visit.cli_identity,
        "s3": visit.cli_object,
        "errors": [str(error) for error in (visit.boto3.get("error"), visit.cli_error) if error],
        "leaked": list(visit.leaked),
        "faults": visit.faults,
    }


def _got(visit: Visit) -> str:
    """In short: `role reports of 123456789012, wrote and read S3`; JSON has the whole ARN."""
    if not visit.identity:
        return "no credentials"
    account, _, session = visit.identity.removeprefix("arn:aws:sts::").partition(":")
    role = session.removeprefix("assumed-role/").partition("/")[0]
    return f"role {role} of {account}" + (", wrote and read S3" if visit.cli_object else "")


def _why(visit: Visit, reasons: Mapping[str, str]) -> str:
    return reasons.get(visit.spec.full_name) or f"{visit.status} {visit.refusal}"


def _grid(heads: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Lines of a table: the short columns as wide as they need, the rest shared by what is got and why."""
    narrow = [max(len(row[column]) for row in [heads, *rows]) for column in (0, 4)]
    left = width - sum(narrow) - 4 * len(GAP)
    widths = [narrow[0], left * 4 // 12, left * 3 // 12, left - left * 4 // 12 - left * 3 // 12, narrow[1]]
    lines = _row(heads, widths)
    for row in rows:
        lines += _row(row, widths)
    return lines


def _row(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    columns = [_wrap(cell, width) for cell, width in zip(cells, widths, strict=True)]
    height = max(len(column) for column in columns)
    return [
        GAP.join(
            (column[line] if line < len(column) else "").ljust(width)
            for column, width in zip(columns, widths, strict=True)
        ).rstrip()
        for line in range(height)
    ]


def _wrap(text: str, width: int) -> list[str]:
    """`text` in lines: broken at spaces, and words that are too long (ARNs) after a slash, then after a colon."""
    lines = [""]
    for part in _parts(text, width, " /:"):
        if len(lines[-1]) + len(part.rstrip()) > width and lines[-1]:
            lines.append("")
        lines[-1] += part
    return [line.rstrip() for line in lines]


def _parts(text: str, width: int, breaks: str) -> Iterator[str]:
    """Pieces of `text` that end in the first of `breaks`, and in the next of them where one is wider than `width`."""
    for part in re.findall(f"[^{breaks[0]}]*{breaks[0]}|[^{breaks[0]}]+", text):
        if len(part.rstrip()) <= width or len(breaks) == 1:
            yield part
        else:
            yield from _parts(part, width, breaks[1:])


def _sudo() -> str:
    return "sudo " if "SUDO_USER" in os.environ else ""


def _enter() -> str:
    """How another terminal gets into a place: a user namespace of our own has to be entered first."""
    ours = "" if _is_initial_user_namespace() else " -U --preserve-credentials"
    return f"{_sudo()}nsenter{ours}"


def _is_initial_user_namespace() -> bool:
    return Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]

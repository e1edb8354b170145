"""The table of settings for people: `kube2iam --help`, and the tables of docs/settings.md.

`python -m kube2iam.manual docs/settings.md` writes the tables in that page anew.
"""

import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

from kube2iam.flags import Flag
from kube2iam.settings import rows

_COLUMN = 38
_WIDEST = 110
_NARROWEST = 60
_BEGIN, _END = "<!-- tables: python -m kube2iam.manual docs/settings.md -->", "<!-- end of tables -->"

_USAGE = """\
AWS IAM roles for Kubernetes pods, through the EC2 metadata address.

  kube2iam [flags]                                    run the agent
  kube2iam demo [flags]                               show it in a small world on this machine
  kube2iam redirect install|remove|status [flags]     put the redirect into the kernel, take it out, look at it

--flag value and --flag=value mean the same; a switch is --flag or --flag=false. Each flag can be set in the
environment too: --app-port is KUBE2IAM_APP_PORT. A flag that is given, even empty, beats the environment.
"""

_REDIRECT_USAGE = """\
Put the redirect of the metadata addresses into this node's kernel, take it out, or look at it.

  kube2iam redirect install|remove|status [flags]

The agent keeps the redirect itself with --iptables. These are for init containers, and for clearing up by hand; all
flags of the agent are understood, so that its arguments can be copied, and these matter:
"""

_REDIRECT_FLAGS = frozenset(
    ("app_port", "redirect_backend", "host_interface", "host_ip", "log_format", "log_level", "verbose")
)


def usage() -> str:
    """What `kube2iam --help` prints."""
    return f"{_USAGE}\n{_listing(rows())}"


def redirect_usage() -> str:
    """What `kube2iam redirect --help` prints."""
    return f"{_REDIRECT_USAGE}\n{_listing(row for row in rows() if row.field in _REDIRECT_FLAGS)}"


def with_tables(page: str) -> str:
    """The Markdown `page` with all settings between its two marks."""
    tables = "\n".join(_table(title, group) for title, group in groupby(rows(), lambda row: row.group))
    marked = re.compile(f"{re.escape(_BEGIN)}.*{re.escape(_END)}", re.DOTALL)
    return marked.sub(lambda _: f"{_BEGIN}\n\n{tables}\n{_END}", page)


def _listing(flags: Iterable[Flag]) -> str:
    width = max(_NARROWEST, min(_WIDEST, shutil.get_terminal_size((_WIDEST, 24)).columns))
    blocks = []
    for title, group in groupby(flags, lambda row: row.group):
        lines = [line for row in group for line in _entry(row, width)]
        blocks.append("\n".join([title, *lines]))
    return "\n\n".join(blocks)


def _entry(row: Flag, width: int) -> Iterator[str]:
    head = f"  {row.name} {row.kind.word}".rstrip()
    text = textwrap.wrap(row.help + _notes(row), width - _COLUMN, break_on_hyphens=False)
    if len(head) >= _COLUMN:
        yield head
        head = ""
    yield f"{head:<{_COLUMN}}{text[0]}"
    yield from (" " * _COLUMN + line for line in text[1:])


def _notes(row: Flag) -> str:
    also = row.environment[1:]
    variables = f" [{' or '.join(also)}]" if also else ""
    shown = f" (default {row.shown_default})" if row.shown_default not in {"", "false"} else ""
    return variables + shown


def _table(title: str, group: Iterable[Flag]) -> str:
    lines = [f"### {title}", "", "| Flag | Default | Allowed | Meaning |", "|---|---|---|---|"]
    for row in group:
        default = f"`{row.shown_default}`" if row.shown_default else "none"
        also = row.environment[1:]
        variables = f" Also read from {' and '.join(f'`{name}`' for name in also)}." if also else ""
        cells = (f"`{row.name}`", default, row.kind.allowed, row.help + variables)
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """`text` as one cell: no bar ends it, no angle bracket or star is taken for markup."""
    return re.sub(r"([|<>*])", r"\\\1", text) if "`" not in text else text.replace("|", r"\|")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")

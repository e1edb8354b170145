"""The command `kube2iam`: from arguments and environment to settings or a sub-command, and to an exit status.

0 is well, 2 means that an argument or a setting cannot be used, and then one line on stderr says which.
"""

import difflib
import logging
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NoReturn

from kube2iam import __version__, links, logs, manual, parse
from kube2iam._build import COMMIT, DATE
from kube2iam.flags import Flag
from kube2iam.settings import Settings, SettingsError, quote, rows

log = logging.getLogger(__name__)

_BAD_SETTINGS = 2
_ACTIONS = ("install", "remove", "status")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what `arguments` (without the program's name; by default the process's own) ask for; the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(words, os.environ)
    except SettingsError as error:
        sys.stderr.write(f"kube2iam: {error}\n")
        return _BAD_SETTINGS


def settings_of(words: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """The settings that flags and environment give; raises SettingsError."""
    return Settings.from_texts(_texts(words), environment)


def _run(words: list[str], environment: Mapping[str, str]) -> int:
    if not words or words[0].startswith("-"):
        return _agent(words, environment)
    command = COMMANDS.get(words[0])
    if command is None:
        raise SettingsError(f"there is no command {quote(words[0])}{_nearest(words[0], COMMANDS)}; see kube2iam --help")
    return command(words[1:], environment)


def _agent(words: list[str], environment: Mapping[str, str]) -> int:
    if _asks_for_help(words):
        _say(manual.usage())
        return 0
    given = _texts(words)
    if Settings.from_texts({"version": given.get("version", ())}, {}).version:
        _say(f"Version: {__version__} - Commit: {COMMIT} - Date: {DATE}")
        return 0
    settings = Settings.from_texts(given, environment)
    logs.configure(settings)
    signal.signal(signal.SIGTERM, _leave)  # the container's first process ignores a signal that it has no handler for
    for sentence in (*settings.cautions(), *unknown_variables(environment)):
        log.warning("%s", sentence)
    # Imported here because it takes a moment: --help and a wrong flag are answered at once.
    from kube2iam import app  # noqa: PLC0415

    return app.run(settings)


def _leave(_number: int, _frame: object) -> NoReturn:
    """End before the agent has begun; from then on it has handlers of its own."""
    raise SystemExit(0)


def _demo(words: list[str], _environment: Mapping[str, str]) -> int:
    from kube2iam.demo import world  # noqa: PLC0415 - as above

    return world.main(words)


def _redirect(words: list[str], environment: Mapping[str, str]) -> int:
    if _asks_for_help(words):
        _say(manual.redirect_usage())
        return 0
    action, *flags = words or [""]
    if action not in _ACTIONS:
        said = f"redirect cannot {quote(action)}" if action else "redirect needs an action"
        raise SettingsError(f"{said}; expected install, remove or status")
    settings = settings_of(flags, environment)
    if action == "install" and not settings.host_ip:
        raise SettingsError("redirect install needs --host-ip (or the variable HOST_IP): where the redirect leads")
    logs.configure(settings)
    from kube2iam.redirect import command  # noqa: PLC0415 - as above

    return command.run(action, settings)


COMMANDS: Mapping[str, Callable[[list[str], Mapping[str, str]], int]] = {"demo": _demo, "redirect": _redirect}
"""Sub-commands: what runs one, from the words after it and the environment to the exit status."""


def unknown_variables(environment: Mapping[str, str]) -> tuple[str, ...]:
    """A sentence about each variable that sets nothing although it is named like a setting, or begins so."""
    return tuple(_without_effect(environment, {name for row in rows() for name in row.environment}))


def _without_effect(environment: Mapping[str, str], known: set[str]) -> Iterator[str]:
    for name, text in sorted(environment.items()):
        link = links.is_service_link(name, text)
        if link and name in known:
            yield (
                f"the variable {name} is Kubernetes' link to the Service {links.service_of(name)} and no setting; "
                "enableServiceLinks: false in the pod's spec leaves it out"
            )
        elif not link and name not in known and name.startswith("KUBE2IAM_"):
            yield f"the variable {name} sets nothing{_nearest(name, known)}"


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def _asks_for_help(words: Sequence[str]) -> bool:
    return "--help" in words or "-h" in words


def _texts(words: Sequence[str]) -> dict[str, list[str]]:
    """What is given for each field, in order."""
    known = {row.name: row for row in rows()}
    given: defaultdict[str, list[str]] = defaultdict(list)
    rest, switch = iter(words), ""
    for word in rest:
        name, equals, text = word.partition("=")
        row = known.get(name)
        if row is None:
            raise SettingsError(_not_a_flag(word, known, switch))
        given[row.field].append(text if equals else row.kind.bare or _next(rest, row))
        switch = row.name if row.kind.bare and not equals else ""
    return given


def _next(rest: Iterator[str], row: Flag) -> str:
    text = next(rest, None)
    if text is None or text.startswith("--"):
        raise SettingsError(f"{row.name} needs a value; expected {row.kind.allowed}")
    return text


def _not_a_flag(word: str, known: Iterable[str], switch: str) -> str:
    """What is wrong with a word that is no known flag; `switch` is the switch just before it, if there is one."""
    name, _, value = word.partition(" ")
    if name in known and value:
        return f"{quote(word)} is one argument; write {name}={value.strip()}, or two arguments"
    if word.startswith("-"):
        name = word.partition("=")[0]
        return f"there is no flag {quote(name)}{_nearest(name, known)}; see kube2iam --help"
    if switch and _is_boolean(word):
        return f"{quote(word)} belongs to no flag: the value of a switch needs a sign of equality, {switch}={word}"
    return f"{quote(word)} belongs to no flag; see kube2iam --help"


def _is_boolean(text: str) -> bool:
    try:
        parse.boolean(text)
    except ValueError:
        return False
    return True


def _nearest(text: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(text, list(known), n=1)
    return f"; did you mean {found[0]}" if found else ""

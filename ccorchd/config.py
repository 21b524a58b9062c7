# SPDX-License-Identifier: LGPL-2.1-or-later
"""The settings of the daemon: one table, from which files, variables, checks, the man page and the template all come.

Later ones win: the defaults, ``ccorchd.toml``, the files of ``ccorchd.toml.d/`` in the order of their names, and
variables ``CCORCH_<SECTION>_<NAME>``. Nothing is guessed: an unknown key or a value out of range is an error.

``python3 -m ccorchd.config man|markdown|toml`` prints the table as ccorchd.toml(5), for docs/settings.md, or as a file
to start from.
"""

from __future__ import annotations

import difflib
import enum
import math
import os
import re
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError
from ccorchd.model import Limits, parse_size

FILE_NAME: Final = "ccorchd.toml"
VARIABLE_PREFIX: Final = "CCORCH_"

N = TypeVar("N", int, float)
Value = bool | int | float | str | tuple[str, ...]


class Kind(enum.StrEnum):
    """What a setting's value may be; the value is the word for it in the documentation."""

    BOOL = "true or false"
    INT = "whole number"
    FLOAT = "number"
    SECONDS = "seconds"
    TEXT = "text"
    SIZE = "size"
    LIST = "list of texts"


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table.

    ``reload`` says whether ``ccorchctl reload`` (and ``systemctl reload``) applies a change; the others need a restart
    of the daemon, which leaves every instance running. ``least`` and ``most`` bound numbers and sizes (in
    bytes), both included. ``check`` raises :class:`CcorchError` on a text that the kind alone would let pass; for a
    list it gets each element.
    """

    key: str
    type: Kind
    default: Value
    help: str
    reload: bool = True
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    check: Callable[[str], object] | None = None

    @property
    def section(self) -> str:
        return self.key.partition(".")[0]

    @property
    def name(self) -> str:
        return self.key.partition(".")[2]

    @property
    def variable(self) -> str:
        """The variable that overrides it."""
        return VARIABLE_PREFIX + self.key.replace(".", "_").upper()

    def allowed(self) -> str:
        """Say in words what the value may be, for errors and documentation."""
        if self.choices:
            return "one of " + ", ".join(map(show, self.choices))
        text = "size in bytes or like 64K" if self.type is Kind.SIZE else str(self.type)
        if self.least is not None and self.most is not None:
            return f"{text}, {self.least:.15g} to {self.most:.15g}"
        return text


class _Wrong(Exception):
    """A value does not fit; the text says what would."""


_NO_MACHINE: Final = 2**50
"""Stands in for the host's memory where only the form of a limit is checked: any percentage of it is big enough."""

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]*\Z")


def _check_limit(limit: str) -> Callable[[str], object]:
    return lambda text: text and Limits.parse({limit: text}, Limits(), _NO_MACHINE)


def _check_share(text: str) -> None:
    if text != "auto" and not (text.endswith("%") and 0 < parse_size(text, "", 1000) <= 1000):
        raise _Wrong('write "auto" or a percentage up to "100%"')


def _check_variable(text: str) -> None:
    if not _VARIABLE.match(text):
        raise _Wrong(f"{show(text)} is no name of a variable")


def _check_agent(text: str) -> None:
    if not _NAME.match(text):
        raise _Wrong(f"{show(text)} is no name of an agent")


def _check_command(text: str) -> None:
    if not text.strip() or "\0" in text:
        raise _Wrong("write the name or the path of a program")


def _check_folder(text: str) -> None:
    if text and not text.startswith(("/", "~/")):
        raise _Wrong("write a path that starts with / or ~/")


SETTINGS: Final[tuple[Setting, ...]] = (
    Setting(
        "instances.max", Kind.INT, 10,
        "How many instances may run at a time. Creating one more is refused. The default memory limits follow from it.",
        least=1, most=1000,
    ),
    Setting(
        "instances.agent", Kind.TEXT, "claude",
        "The agent of an instance that names none: claude, demo or command.",
        check=_check_agent,
    ),
    Setting(
        "instances.start_timeout", Kind.SECONDS, 60.0,
        "How long a new instance may take to get its scope and its tmux server before the start counts as failed. "
        "Set-up steps of the project are not counted.",
        least=1, most=3600,
    ),
    Setting(
        "instances.stop_timeout", Kind.SECONDS, 10.0,
        "How long the processes of an instance may take to end after SIGTERM; then those that are left are killed.",
        least=0.1, most=3600,
    ),
    Setting(
        "instances.memory_share", Kind.TEXT, "auto",
        'How much of the host\'s memory one instance gets when no limit is given: a percentage, or "auto" for a share '
        "that follows from instances.max.",
        check=_check_share,
    ),
    Setting(
        "instances.memory_max", Kind.TEXT, "",
        'MemoryMax of an instance that is given none: a size such as "4G", a percentage of the host\'s memory, or '
        '"infinity". Empty: what instances.memory_share gives. See systemd.resource-control(5).',
        check=_check_limit("MemoryMax"),
    ),
    Setting(
        "instances.memory_high", Kind.TEXT, "",
        "MemoryHigh of an instance that is given none, written like instances.memory_max. Empty: a little below "
        "MemoryMax, so that an instance is slowed down before it is killed.",
        check=_check_limit("MemoryHigh"),
    ),
    Setting(
        "instances.cpu_weight", Kind.INT, 100,
        "CPUWeight of an instance that is given none: its share when the CPUs are busy.",
        least=1, most=10_000,
    ),
    Setting(
        "instances.cpu_quota", Kind.TEXT, "",
        'CPUQuota of an instance that is given none: a percentage of one CPU, such as "200%". Empty: no quota.',
        check=_check_limit("CPUQuota"),
    ),
    Setting(
        "instances.tasks_max", Kind.INT, 1024,
        "TasksMax of an instance that is given none: how many processes and threads it may have.",
        least=16, most=4_194_304,
    ),
    Setting(
        "ports.first", Kind.INT, 42000,
        "The first TCP port that is leased to instances, one each, told to the agent as CCORCH_PORT.",
        least=1024, most=65535,
    ),
    Setting("ports.last", Kind.INT, 42999, "The last TCP port that is leased to instances.", least=1024, most=65535),
    Setting(
        "prompts.confirm_timeout", Kind.SECONDS, 30.0,
        "How long to wait for an agent to confirm that it took a prompt.",
        least=1, most=600,
    ),
    Setting(
        "prompts.retries", Kind.INT, 4,
        "How often Enter is pressed again for a prompt that was not confirmed. The prompt itself is sent once.",
        least=0, most=10,
    ),
    Setting(
        "logs.lines_per_10s", Kind.INT, 200,
        "How many journal lines one instance may cause in ten seconds. What is above is counted and the count is "
        "logged; the events shown by ccorchctl are kept in any case.",
        least=1, most=100_000,
    ),
    Setting(
        "events.text_limit", Kind.SIZE, 16384,
        "How much of one text (a prompt, a last message, a tool's result) is kept in an event; the rest is cut off.",
        least=256, most=1024**2,
    ),
    Setting(
        "usage.interval", Kind.SECONDS, 1.0,
        "How often the use of memory, CPU and tasks is read for each instance.",
        least=0.1, most=3600,
    ),
    Setting(
        "agents.environment", Kind.LIST, (),
        "Names of further variables that are passed on to agents from the environment of the caller.",
        check=_check_variable,
    ),
    Setting(
        "claude.command", Kind.TEXT, "claude",
        "The program that the agent claude runs: a name that is looked for in the instance's PATH, or a path.",
        check=_check_command,
    ),
    Setting(
        "claude.permission_mode", Kind.TEXT, "default",
        "The permission mode that Claude Code starts in.",
        choices=("default", "acceptEdits", "plan", "auto", "dontAsk", "bypassPermissions"),
    ),
    Setting(
        "claude.model", Kind.TEXT, "",
        "The model that Claude Code is told to use. Empty: its own choice.",
    ),
    Setting(
        "claude.config_dir", Kind.TEXT, "",
        "The folder for Claude Code's settings and log-in (its CLAUDE_CONFIG_DIR). Empty: the user's own, ~/.claude.",
        check=_check_folder,
    ),
    Setting(
        "daemon.shutdown_timeout", Kind.SECONDS, 30.0,
        "How long the daemon may take to shut down cleanly; what is not done by then is given up.",
        least=1, most=600,
    ),
)  # fmt: skip

_BY_KEY: Final = {setting.key: setting for setting in SETTINGS}
_SECTIONS: Final = tuple(dict.fromkeys(setting.section for setting in SETTINGS))

SECTION_HELP: Final[Mapping[str, str]] = {
    "instances": "How many instances there may be, and what each gets when it is created without limits of its own.",
    "ports": "The TCP ports that are leased to instances, so that two development servers never meet.",
    "prompts": "Sending prompts to agents.",
    "logs": "The journal.",
    "events": "The history of instances, which ccorchctl why, events and audit show.",
    "usage": "Reading what instances use.",
    "agents": "All agents.",
    "claude": "The agent claude.",
    "daemon": "The daemon itself.",
}


class Config:
    """Checked values of all settings, with where each comes from.

    ``config["instances.max"]`` has the type of the setting's default (seconds are floats, lists are tuples); an
    unknown key is a KeyError, since only the code can be wrong then. Holders keep the one object: :meth:`adopt` changes
    it.
    """

    def __init__(self) -> None:
        """All settings at their defaults."""
        self._values: dict[str, Value] = {setting.key: setting.default for setting in SETTINGS}
        self._sources: dict[str, str] = {}

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def source(self, key: str) -> str:
        """Return ``default``, the path of the file, or the name of the variable that the value comes from."""
        return self._sources.get(_BY_KEY[key].key, "default")

    def set(self, key: str, value: object, source: str) -> None:
        """Check *value*, written as in a file, and keep it; raise ``ConfigInvalid`` naming *source*."""
        self._values[key] = _parsed(_BY_KEY[key], value, source)
        self._sources[key] = source

    def rows(self) -> list[dict[str, str]]:
        """Return the table with values as clients see it (``contract.SETTING_FIELDS``)."""
        return [
            {
                "key": setting.key,
                "value": show(self._values[setting.key]),
                "default": show(setting.default),
                "source": self.source(setting.key),
                "help": setting.help,
            }
            for setting in SETTINGS
        ]

    def adopt(self, fresh: Config) -> tuple[list[str], list[str]]:
        """Take over from *fresh*, just loaded, what can change in a running daemon.

        Return the keys that changed here, and those that differ but wait for the daemon's next start.
        """
        changed: list[str] = []
        waiting: list[str] = []
        for setting in SETTINGS:
            key = setting.key
            if fresh[key] == self._values[key]:
                continue
            if setting.reload:
                changed.append(key)
                self._values[key] = fresh[key]
                self._sources[key] = fresh.source(key)
            else:
                waiting.append(key)
        return changed, waiting


def load(config_dir: Path, environment: Mapping[str, str]) -> Config:
    """Read all files of *config_dir* and the variables of *environment*; a missing file or folder is no error.

    Raise ``ConfigInvalid`` with one sentence that names the file, the line where it is known, the key and the nearest
    known one.
    """
    config = Config()
    for path in _files(config_dir):
        _read_file(config, path)
    _read_variables(config, environment)
    _check_together(config)
    return config


def _files(config_dir: Path) -> list[Path]:
    main, folder = config_dir / FILE_NAME, config_dir / f"{FILE_NAME}.d"
    found = [main] if main.exists() or main.is_symlink() else []
    try:
        names = sorted(entry.name for entry in os.scandir(folder))
    except FileNotFoundError:
        names = []
    except OSError as error:
        raise CcorchError(ErrorCode.CONFIG_INVALID, f"{folder} cannot be read: {error.strerror}") from error
    return found + [folder / name for name in names if name.endswith(".toml") and not name.startswith(".")]


def _read_file(config: Config, path: Path) -> None:
    try:
        text = path.read_bytes().decode()
        # tomllib takes only \n and \r\n for line ends, as TOML wants; splitlines() would take more.
        data = tomllib.loads(text)
    except OSError as error:
        raise CcorchError(ErrorCode.CONFIG_INVALID, f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CcorchError(ErrorCode.CONFIG_INVALID, f"{path} is not UTF-8 (byte {error.start})") from error
    except tomllib.TOMLDecodeError as error:
        raise CcorchError(
            ErrorCode.CONFIG_INVALID,
            f"{path} is no valid TOML: {error}",
            'Text goes between quotes: model = "sonnet"; a section starts with its name in brackets: [claude].',
        ) from error
    for section, table in data.items():
        if section not in _SECTIONS:
            names = list(table) if isinstance(table, dict) else []
            key = f"{section}.{names[0]}" if len(names) == 1 else section
            line = _line(text, section, names[0] if len(names) == 1 else "")
            raise _unknown(key, f"{path}{line}")
        if not isinstance(table, dict):
            raise CcorchError(
                ErrorCode.CONFIG_INVALID,
                f"{path}{_line(text, section, '')}: {section} is a section, not a setting",
                f"Write [{section}] on a line of its own, and its settings below it.",
            )
        for name, value in table.items():
            key = f"{section}.{name}"
            if key not in _BY_KEY:
                raise _unknown(key, f"{path}{_line(text, section, name)}")
            try:
                config.set(key, value, str(path))
            except CcorchError as error:
                message = error.message.replace(str(path), f"{path}{_line(text, section, name)}", 1)
                raise CcorchError(error.code, message, error.hint) from None


def _read_variables(config: Config, environment: Mapping[str, str]) -> None:
    by_variable = {setting.variable: setting for setting in SETTINGS}
    for variable in sorted(environment):
        if not variable.startswith(VARIABLE_PREFIX):
            continue
        if setting := by_variable.get(variable):
            config.set(setting.key, _from_text(setting, environment[variable]), variable)
            continue
        # Other variables of ours start like this too (CCORCH_SUFFIX): an error is only what is meant for a section.
        ours = any(variable.startswith(f"{VARIABLE_PREFIX}{section.upper()}_") for section in _SECTIONS)
        near = difflib.get_close_matches(variable, by_variable, n=1, cutoff=0.6 if ours else 0.92)
        if ours or near:
            hint = f"Did you mean {near[0]}?" if near else "ccorchd.toml(5) lists all variables."
            raise CcorchError(ErrorCode.CONFIG_INVALID, f"the environment has an unknown setting {variable}", hint)


def _check_together(config: Config) -> None:
    if config["ports.first"] > config["ports.last"]:
        raise CcorchError(
            ErrorCode.CONFIG_INVALID,
            f"ports.first = {config['ports.first']} ({config.source('ports.first')}) is above "
            f"ports.last = {config['ports.last']} ({config.source('ports.last')})",
            "Set both to the two ends of one range.",
        )
    wanted = {"MemoryHigh": config["instances.memory_high"], "MemoryMax": config["instances.memory_max"]}
    if all(text and not text.endswith("%") for text in wanted.values()):
        try:
            Limits.parse(wanted, Limits(), _NO_MACHINE)
        except CcorchError as error:
            raise CcorchError(
                ErrorCode.CONFIG_INVALID,
                f"instances.memory_high ({config.source('instances.memory_high')}) is above "
                f"instances.memory_max ({config.source('instances.memory_max')})",
                error.hint,
            ) from error


def _unknown(key: str, where: str) -> CcorchError:
    section, _, name = key.partition(".")
    names = {setting.name: setting.key for setting in SETTINGS}
    own = {setting.name: setting.key for setting in SETTINGS if setting.section == section}

    def close(word: str, known: Mapping[str, str], cutoff: float) -> list[str]:
        return [known[match] for match in difflib.get_close_matches(word, known, n=1, cutoff=cutoff)]

    # A slip within the section, else the right name in the wrong section or without any, else what looks most alike.
    near = (
        close(name, own, 0.6) or close(name or section, names, 0.9) or close(key, {each: each for each in _BY_KEY}, 0.6)
    )
    if near:
        hint = f"Did you mean {near[0]}?"
    elif section in _SECTIONS:
        hint = f"[{section}] has " + ", ".join(each.name for each in SETTINGS if each.section == section) + "."
    else:
        hint = "Sections are " + ", ".join(_SECTIONS) + "."
    what = "setting" if "." in key or (near and section not in _SECTIONS) else "section"
    return CcorchError(ErrorCode.CONFIG_INVALID, f"{where}: unknown {what} {key}", hint)


_NEVER: Final = re.compile(r"(?!)")


def _line(text: str, section: str, name: str) -> str:
    """Return ``:LINE`` of a key, or nothing where this simple reading does not find it (tomllib tells no lines)."""

    def spelled(word: str) -> str:
        return rf"""(?:{re.escape(word)}|"{re.escape(word)}"|'{re.escape(word)}')"""

    header = re.compile(r"\s*\[+\s*([^\]]*?)\s*\]+\s*(?:#.*)?\Z")
    own_header = re.compile(
        spelled(section) + (rf"(?:\s*\.\s*{spelled(name)}(?:\s*\..*)?)?\Z" if name else r"(?:\s*\..*)?\Z")
    )
    in_section = re.compile(rf"\s*{spelled(name)}\s*[=.]")
    dotted = re.compile(
        rf"\s*{spelled(section)}\s*"
        + (rf"(?:\.\s*{spelled(name)}\s*[=.]|=.*\b{re.escape(name)}\b)" if name else "[=.]")
    )
    here, first_header = "", ""
    for number, line in enumerate(text.split("\n"), 1):
        if match := header.match(line.rstrip("\r")):
            here = match[1]
            if own_header.match(here):
                first_header = first_header or f":{number}"
                if not name or here.strip("\"'") != section:
                    return f":{number}"
        elif (dotted if not here else in_section if name and here.strip("\"'") == section else _NEVER).match(line):
            return f":{number}"
    return first_header


_WORDS: Final = {
    word: truth for truth, words in ((True, "1 yes true on"), (False, "0 no false off")) for word in words.split()
}


def _from_text(setting: Setting, text: str) -> object:
    """Turn a variable's text into what a file would hold; what does not fit is left for the check to refuse."""
    try:
        match setting.type:
            case Kind.INT:
                return int(text)
            case Kind.FLOAT | Kind.SECONDS:
                return float(text)
            case Kind.BOOL:
                return _WORDS.get(text.strip().lower(), text)
            case Kind.LIST:
                return [word for word in re.split(r"[\s,]+", text) if word]
    except ValueError:
        pass
    return text


def _parsed(setting: Setting, value: object, source: str) -> Value:
    try:
        return _converted(setting, value)
    except _Wrong as error:
        detail = str(error)
    except CcorchError as error:
        detail = error.hint or error.message
    raise CcorchError(
        ErrorCode.CONFIG_INVALID,
        f"{source}: {setting.key} = {_show_given(value)} does not fit: {detail}",
        f"The default is {show(setting.default)}. {setting.help}",
    )


def _converted(setting: Setting, value: object) -> Value:
    wrong = _Wrong(f"write {_article(setting.allowed())}")
    match setting.type:
        case Kind.BOOL:
            if not isinstance(value, bool):
                raise wrong
            return value
        case Kind.INT:
            if not isinstance(value, int) or isinstance(value, bool):
                raise wrong
            return _in_range(setting, value, wrong)
        case Kind.FLOAT | Kind.SECONDS:
            if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
                raise wrong
            return _in_range(setting, float(value), wrong)
        case Kind.SIZE:
            if isinstance(value, str) and "%" not in value:
                value = parse_size(value, setting.key, 0)
            if not isinstance(value, int) or isinstance(value, bool):
                raise wrong
            return _in_range(setting, value, wrong)
        case Kind.LIST:
            if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
                raise wrong
            for each in value:
                _check_text(setting, each)
            return tuple(value)
        case Kind.TEXT:
            if not isinstance(value, str) or (setting.choices and value not in setting.choices):
                raise wrong
            _check_text(setting, value)
            return os.path.expanduser(value) if setting.check is _check_folder else value


def _check_text(setting: Setting, text: str) -> None:
    # A line break could smuggle a second line into a generated file, a NUL cannot be an argument.
    if any(character in text for character in "\0\r\n"):
        raise _Wrong("write it on one line")
    if setting.check:
        setting.check(text)


def _in_range(setting: Setting, number: N, wrong: _Wrong) -> N:
    if (setting.least is not None and number < setting.least) or (setting.most is not None and number > setting.most):
        raise wrong
    return number


def _article(words: str) -> str:
    if words.startswith(("seconds", "one of", "true")):
        return words
    return f"a {words}"


def show(value: Value) -> str:
    """Return *value* as TOML writes it."""
    match value:
        case bool():
            return "true" if value else "false"
        case float():
            return f"{value:.15g}" if value != int(value) else f"{int(value)}"
        case tuple():
            return "[" + ", ".join(map(show, value)) + "]"
        case str():
            escaped = value.replace("\\", "\\\\").replace('"', '\\"')
            return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda match: f"\\u{ord(match[0]):04x}", escaped) + '"'
    return str(value)


def _show_given(value: object) -> str:
    if isinstance(value, dict):
        return "{…}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_show_given, value)) + "]"
    text = show(value) if isinstance(value, bool | int | str) else str(value)
    return text if len(text) <= 80 else text[:79] + "…"


def default_text() -> str:
    """Return a ccorchd.toml with every setting explained and commented out, so that it changes nothing as it is."""
    lines = [
        "# Settings of ccorchd; see ccorchd.toml(5). Each line below shows a default: take away the # to change it.",
        f"# Files {FILE_NAME}.d/*.toml are read after this one, in the order of their names.",
    ]
    for section in _SECTIONS:
        lines += ["", f"# {SECTION_HELP[section]}", f"[{section}]"]
        for setting in SETTINGS:
            if setting.section != section:
                continue
            lines.append("")
            lines += textwrap.wrap(setting.help, 110, initial_indent="# ", subsequent_indent="# ")
            note = "" if setting.reload else "; a change takes a restart of the daemon"
            lines += textwrap.wrap(f"({setting.allowed()}{note})", 110, initial_indent="# ", subsequent_indent="# ")
            lines.append(f"#{setting.name} = {show(setting.default)}")
    return "\n".join(lines) + "\n"


def markdown() -> str:
    """Return the table for docs/settings.md."""
    lines = ["| setting | value | default | variable | reload | meaning |", "|---|---|---|---|---|---|"]
    for setting in SETTINGS:
        cells = (
            f"`{setting.key}`",
            setting.allowed(),
            f"`{show(setting.default)}`",
            f"`{setting.variable}`",
            "yes" if setting.reload else "no",
            setting.help,
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _roff(text: str) -> str:
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")
    return re.sub(r"^([.'])", r"\\&\1", escaped, flags=re.MULTILINE)


def man() -> str:
    """Return ccorchd.toml(5) in roff (man-pages(7), groff_man(7))."""
    lines = [
        '.TH CCORCHD.TOML 5 "" ccorch "ccorch manual"',
        ".SH NAME",
        "ccorchd.toml \\- settings of the daemon ccorchd",
        ".SH SYNOPSIS",
        ".I \\(ti/.config/ccorch/ccorchd.toml",
        ".br",
        ".I \\(ti/.config/ccorch/ccorchd.toml.d/*.toml",
        ".SH DESCRIPTION",
        "The files are TOML. Later ones win: the defaults, the file ccorchd.toml, the files of ccorchd.toml.d in the",
        "order of their names, and last the environment of the daemon, where the setting",
        ".I section.name",
        "is the variable",
        ".IR CCORCH_SECTION_NAME .",
        "Lists in a variable are separated by spaces or commas.",
        ".PP",
        "An unknown setting or a value that does not fit is an error: the daemon does not start, and a reload changes",
        "nothing.",
        ".PP",
        ".B ccorchctl config",
        "shows each setting with its value and the file or variable it comes from.",
        "Settings about limits count for instances started later; those that run keep theirs.",
        ".PP",
        "Sizes are in bytes, or a number followed by K, M, G or T to the base 1024. Times are in seconds.",
    ]
    for section in _SECTIONS:
        lines += [f".SH [{section}]", _roff(SECTION_HELP[section])]
        for setting in SETTINGS:
            if setting.section != section:
                continue
            lines += [
                ".TP",
                f'.BR {setting.name} " = {_roff(show(setting.default))}"',
                _roff(setting.help),
                ".br",
                f"Value: {_roff(setting.allowed())}. Variable: {setting.variable}.",
            ]
            if not setting.reload:
                lines.append("A change takes a restart of the daemon; instances go on.")
    lines += [
        ".SH EXAMPLE",
        ".EX",
        "[instances]",
        "max = 6",
        "memory_max = \\(dq4G\\(dq",
        "",
        "[claude]",
        "permission_mode = \\(dqacceptEdits\\(dq",
        ".EE",
        ".SH SEE ALSO",
        ".BR ccorchctl (1),",
        ".BR systemd.resource\\-control (5)",
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Print one rendering of the table; return the exit status."""
    renderings: dict[str, Callable[[], str]] = {"man": man, "markdown": markdown, "toml": default_text}
    if len(arguments) != 1 or arguments[0] not in renderings:
        print("usage: python3 -m ccorchd.config man|markdown|toml", file=sys.stderr)
        return 2
    sys.stdout.write(renderings[arguments[0]]())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

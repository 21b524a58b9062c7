# SPDX-License-Identifier: LGPL-2.1-or-later
"""The settings of the daemon: the one table from which the reading, the checks and the documentation all come."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from ccorchd.model import Limits, parse_size

FILE_NAME: Final = "ccorchd.toml"
VARIABLE_PREFIX: Final = "CCORCH_"

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
    bytes), both included. ``check`` raises :class:`Unfit` or ``CcorchError`` on a text that the kind alone would let
    pass; for a list it gets each element.
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


class Unfit(Exception):
    """A value does not fit; the text says what would."""


NO_MACHINE: Final = 2**50
"""Stands in for the host's memory where only the form of a limit is checked: any percentage of it is big enough."""

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]*\Z")


def _check_limit(limit: str) -> Callable[[str], object]:
    return lambda text: text and Limits.parse({limit: text}, Limits(), NO_MACHINE)


def _check_share(text: str) -> None:
    if text != "auto" and not (text.endswith("%") and 0 < parse_size(text, "", 1000) <= 1000):
        raise Unfit('write "auto" or a percentage up to "100%"')


def _check_variable(text: str) -> None:
    if not _VARIABLE.match(text):
        raise Unfit(f"{show(text)} is no name of a variable")


def _check_agent(text: str) -> None:
    if not _NAME.match(text):
        raise Unfit(f"{show(text)} is no name of an agent")


def _check_command(text: str) -> None:
    if not text.strip() or "\0" in text:
        raise Unfit("write the name or the path of a program")


def check_folder(text: str) -> None:
    if text and not text.startswith(("/", "~/")):
        raise Unfit("write a path that starts with / or ~/")


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
        check=check_folder,
    ),
    Setting(
        "daemon.shutdown_timeout", Kind.SECONDS, 30.0,
        "How long the daemon may take to shut down cleanly; what is not done by then is given up.",
        least=1, most=600,
    ),
)  # fmt: skip

BY_KEY: Final = {setting.key: setting for setting in SETTINGS}
SECTIONS: Final = tuple(dict.fromkeys(setting.section for setting in SETTINGS))

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

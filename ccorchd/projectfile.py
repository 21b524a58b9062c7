# SPDX-License-Identifier: LGPL-2.1-or-later
"""``.ccorch.toml``: what a repository says about its own instances (docs/projectfile.md is its reference).

The file comes with the repository, so it is another person's text: what in it runs commands or changes the environment
counts only once the user has agreed to it, which :attr:`ProjectFile.digest` stands for. It is read from the main
checkout, where agents do not write.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn

from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError
from ccorchd.model import Limits

PROJECT_FILE: Final = ".ccorch.toml"
PORT_VARIABLE: Final = "PORT"
LIMIT_KEYS: Final[dict[str, str]] = {
    "memory_high": "MemoryHigh",
    "memory_max": "MemoryMax",
    "cpu_quota": "CPUQuota",
    "cpu_weight": "CPUWeight",
    "tasks_max": "TasksMax",
}
"""Keys of ``[instances.limits]`` and systemd's names for them (systemd.resource-control(5))."""

KEYS: Final = (
    *("agent", "base", "port_variable", "setup", "setup.steps", "environment", "instances", "instances.limits"),
    *(f"instances.limits.{key}" for key in LIMIT_KEYS),
)
"""All keys but the names of variables in ``[environment]``."""

_LARGEST: Final = 256 * 1024
_MOST_STEPS: Final = 100
_AGENT: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}\Z")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}\Z")
_OURS: Final = ("DBUS_SESSION_BUS_ADDRESS", "TMUX", "TMUX_PANE")
_SOME_MEMORY: Final = 1 << 40
"""Percentages of memory are only checked for their form here, whatever machine this is."""


@dataclass(frozen=True, slots=True)
class ProjectFile:
    """Content of a project file; empty where it says nothing.

    ``limits`` has systemd's names. ``digest`` is a SHA-256 over all that needs the user's agreement (steps, variables,
    the choice of agent, the port's variable) and empty when there is no such thing; ``asks`` has the same as lines for
    people.
    """

    setup: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    agent: str = ""
    base: str = ""
    limits: dict[str, str] = field(default_factory=dict)
    port_variable: str = PORT_VARIABLE
    digest: str = ""

    @property
    def asks(self) -> list[str]:
        """What the user has to agree to, one line each: steps as they are, then the rest in words."""
        lines = [*self.setup, *(f"set {name}={value}" for name, value in self.environment.items())]
        if self.agent:
            lines.append(f"run the agent {self.agent}")
        if self.port_variable != PORT_VARIABLE:
            lines.append(f"tell the port in {self.port_variable}")
        return lines


def load(repository: Path) -> ProjectFile:
    """Read the project file of the main checkout *repository*; without one all is empty.

    Raise ``ConfigInvalid`` in one sentence that names file, line and key, with the nearest known key as the hint.
    """
    path = repository / PROJECT_FILE
    text = _read(path)
    if text is None:
        return ProjectFile()
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CcorchError(
            ErrorCode.CONFIG_INVALID,
            f"{path} is no valid TOML: {error}",
            'Text goes between quotes: agent = "claude"; a section starts with its name in brackets: [setup].',
        ) from error
    except RecursionError as error:
        raise CcorchError(ErrorCode.CONFIG_INVALID, f"{path} is nested too deeply") from error
    return _Reader(path, text).read(data)


def _read(path: Path) -> str | None:
    try:
        # Not blocking, in case it is a pipe.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise CcorchError(ErrorCode.CONFIG_INVALID, f"{path} is no file")
            raw = file.read(_LARGEST + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CcorchError(ErrorCode.CONFIG_INVALID, f"{path} cannot be read: {error.strerror}") from error
    if len(raw) > _LARGEST:
        raise CcorchError(ErrorCode.CONFIG_INVALID, f"{path} is larger than {_LARGEST // 1024} KiB")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise CcorchError(ErrorCode.CONFIG_INVALID, f"{path} is not UTF-8 (byte {error.start})") from error


class _Reader:
    """Checks the parsed file against what is known, telling faults by line."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._text = text

    def read(self, data: dict[str, Any]) -> ProjectFile:
        self._known(data, ())
        setup = self._table(data, "setup")
        instances = self._table(data, "instances")
        self._known(setup, ("setup",))
        self._known(instances, ("instances",))
        agent = self._text_of(data, "agent")
        if agent and not _AGENT.match(agent):
            self._fail(("agent",), f"{agent!r} is no name of an agent", 'For example agent = "claude".')
        base = self._text_of(data, "base")
        if base.startswith("-") or not base.isprintable():
            self._fail(("base",), f"{base!r} does not name a commit", 'For example base = "origin/main".')
        port_variable = self._text_of(data, "port_variable", PORT_VARIABLE)
        self._check_variable(("port_variable",), port_variable)
        environment = self._environment(self._table(data, "environment"), port_variable)
        steps = self._steps(setup)
        return ProjectFile(
            setup=steps,
            environment=environment,
            agent=agent,
            base=base,
            limits=self._limits(instances),
            port_variable=port_variable,
            digest=_digest(steps, environment, agent, port_variable),
        )

    def _known(self, table: Mapping[str, Any], where: tuple[str, ...]) -> None:
        for name in table:
            key = ".".join((*where, name))
            if key in KEYS:
                continue
            # A slip, else the right name in the wrong place.
            near = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.7) or [
                known for known in KEYS if known.rpartition(".")[2] == name
            ]
            there = [known for known in KEYS if known.rpartition(".")[0] == ".".join(where)]
            hint = f"Did you mean {near[0]}?" if near else f"Known here: {', '.join(there)}."
            self._fail((*where, name), "unknown key", hint)

    def _table(self, table: Mapping[str, Any], *keys: str) -> dict[str, Any]:
        found = table.get(keys[-1], {})
        if not isinstance(found, dict):
            name = ".".join(keys)
            self._fail(keys, "this is a section", f"Write [{name}] on a line of its own, and its keys below it.")
        return found

    def _text_of(self, table: Mapping[str, Any], name: str, default: str = "") -> str:
        value = table.get(name, default)
        if not isinstance(value, str) or not (value.strip() or value == default):
            self._fail((name,), f"{_shown(value)} is no text", f'Write {name} = "…", or leave it out.')
        return value

    def _steps(self, setup: Mapping[str, Any]) -> list[str]:
        steps = setup.get("steps", [])
        if not isinstance(steps, list):
            self._fail(("setup", "steps"), f"{_shown(steps)} is no list", 'For example steps = ["npm ci"].')
        if len(steps) > _MOST_STEPS:
            self._fail(
                ("setup", "steps"), f"more than {_MOST_STEPS} steps", "Put them into a script of the repository."
            )
        for number, step in enumerate(steps, 1):
            if not isinstance(step, str) or not step.strip() or "\0" in step:
                self._fail(
                    ("setup", "steps"),
                    f"step {number} is {_shown(step)}, which is no command",
                    "Each step is a line for /bin/sh, between quotes.",
                )
        return list(steps)

    def _environment(self, table: Mapping[str, Any], port_variable: str) -> dict[str, str]:
        for name, value in table.items():
            where = ("environment", name)
            self._check_variable(where, name)
            if name == port_variable:
                self._fail(where, "this variable tells each instance its own port", "Name another in port_variable.")
            if not isinstance(value, str):
                self._fail(where, f"{_shown(value)} is no text", f'Put it between quotes: {name} = "{_shown(value)}".')
            if "\0" in value:
                self._fail(where, "a variable cannot hold a NUL character", "")
        return dict(table)

    def _check_variable(self, where: tuple[str, ...], name: str) -> None:
        if not _VARIABLE.match(name):
            self._fail(where, f"{name!r} is no name of a variable", "Letters, digits and _, no digit in front.")
        if name in _OURS or name.startswith("CCORCH_"):
            self._fail(where, f"{name} is set by ccorch itself", "Choose another name.")

    def _limits(self, instances: Mapping[str, Any]) -> dict[str, str]:
        table = self._table(instances, "instances", "limits")
        self._known(table, ("instances", "limits"))
        limits = {}
        for name, value in table.items():
            where = ("instances", "limits", name)
            if isinstance(value, bool) or not isinstance(value, (str, int)):
                self._fail(where, f"{_shown(value)} is no limit", f'For example {name} = "{_EXAMPLES[name]}".')
            limits[LIMIT_KEYS[name]] = str(value)
            try:
                Limits.parse({LIMIT_KEYS[name]: str(value)}, Limits(), _SOME_MEMORY)
            except CcorchError as error:
                self._fail(where, error.message.replace(LIMIT_KEYS[name], name), error.hint)
        memory = {name: text for name, text in limits.items() if name.startswith("Memory") and not text.endswith("%")}
        try:
            Limits.parse(memory, Limits(), _SOME_MEMORY)
        except CcorchError as error:
            self._fail(("instances", "limits", "memory_high"), "it is above memory_max", error.hint)
        return limits

    def _fail(self, where: tuple[str, ...], what: str, hint: str) -> NoReturn:
        line = _line(self._text, where)
        place = f"{self._path}:{line}" if line else str(self._path)
        key = ".".join(where).encode("utf-8", "replace").decode()
        raise CcorchError(ErrorCode.CONFIG_INVALID, f"{place}: {key}: {what}", hint)


_EXAMPLES: Final = {
    "memory_high": "1800M",
    "memory_max": "2G",
    "cpu_quota": "200%",
    "cpu_weight": "100",
    "tasks_max": "1024",
}


def _shown(value: object) -> str:
    """Return a TOML value as its author may have written it, shortened."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _digest(steps: list[str], environment: Mapping[str, str], agent: str, port_variable: str) -> str:
    agreed: dict[str, object] = {}
    if steps:
        agreed["setup"] = steps
    if environment:
        agreed["environment"] = dict(environment)
    if agent:
        agreed["agent"] = agent
    if port_variable != PORT_VARIABLE:
        agreed["port_variable"] = port_variable
    if not agreed:
        return ""
    # The order of steps counts, that of variables does not.
    return hashlib.sha256(json.dumps(agreed, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


_PART: Final = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
_HEADER: Final = re.compile(rf"\s*\[\[?\s*({_PART}(?:\s*\.\s*{_PART})*)\s*\]")
_KEY: Final = re.compile(rf"\s*({_PART}(?:\s*\.\s*{_PART})*)\s*=")


def _line(text: str, where: tuple[str, ...]) -> int:
    """Return the number of the line that has a key (or the table it is in), 0 if that is not found.

    tomllib tells no lines, so this reads the file once more, simply: a multi-line text that looks like a key may fool
    it, and then the number is wrong, but nothing else.
    """

    def parts(match: re.Match[str]) -> tuple[str, ...]:
        return tuple(part.strip("\"'") for part in re.findall(_PART, match[1]))

    table: tuple[str, ...] = ()
    best, best_length = 0, 0
    for number, line in enumerate(text.split("\n"), 1):
        if header := _HEADER.match(line):
            table = found = parts(header)
        elif key := _KEY.match(line):
            found = (*table, *parts(key))
        else:
            continue
        common = min(len(found), len(where))
        if found[:common] == where[:common] and common > best_length:
            best, best_length = number, common
    return best

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Plain values the layers pass to each other, and the checks of names and limits. Standard library only."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from ccorchd.contract import ErrorCode, Reason, State
from ccorchd.errors import CcorchError

_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?\Z")


def check_name(name: str, what: str) -> str:
    """Return *name* if it may name a project or an instance, else raise ``InvalidName``; *what* goes into the sentence.

    No dot, slash or capital: the name becomes part of a unit name, a branch, a path and an address.
    """
    if _NAME.match(name):
        return name
    raise CcorchError(
        ErrorCode.INVALID_NAME,
        f"{name!r} cannot be the name of {what}",
        "A name has 1 to 40 of the characters a-z, 0-9 and '-', and neither starts nor ends with '-'.",
    )


@dataclass(frozen=True, slots=True)
class Address:
    """``project/name``."""

    project: str
    name: str

    @classmethod
    def parse(cls, text: str) -> Address:
        """Raise ``InvalidName`` if *text* is no ``project/name``."""
        project, slash, name = text.partition("/")
        if not slash:
            raise CcorchError(
                ErrorCode.INVALID_NAME,
                f"{text!r} is no address of an instance",
                "Write project/name; inside a project's checkout just the name will do.",
            )
        return cls(check_name(project, "a project"), check_name(name, "an instance"))

    def __str__(self) -> str:
        return f"{self.project}/{self.name}"


_UNITS: Final = {"": 1, "B": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\Z", re.IGNORECASE)
_PERCENT: Final = re.compile(r"(\d+(?:\.\d+)?)%\Z")


def parse_size(text: str, what: str, total: int) -> int:
    """Return bytes for ``1.5G``, ``512M``, ``40%`` (of *total* bytes); raise ``InvalidArgument`` naming *what*.

    The base is 1024, as in systemd.resource-control(5).
    """
    size = -1.0
    if match := _SIZE.match(text.strip()):
        size = float(match[1]) * _UNITS[match[2].upper()]
    elif match := _PERCENT.match(text.strip()):
        size = total * float(match[1]) / 100
    # What 63 bits cannot hold, neither the kernel nor SQLite takes; infinity, from 400 digits, is not even an int.
    if 0 <= size < 2**63:
        return int(size)
    raise CcorchError(
        ErrorCode.INVALID_ARGUMENT, f"{what}={text!r} is no size", "Write for example 512M, 2G or 40% (of the host)."
    )


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a scope. Bytes for memory, per cent of one CPU for the quota; None means no limit."""

    memory_high: int | None = None
    memory_max: int | None = None
    cpu_quota_percent: float | None = None
    cpu_weight: int = 100
    tasks_max: int | None = 1024

    def strings(self) -> dict[str, str]:
        """Return the limits as they stand in records: systemd's names, ``infinity`` for none."""

        def show(value: int | None) -> str:
            return "infinity" if value is None else str(value)

        quota = "infinity" if self.cpu_quota_percent is None else f"{self.cpu_quota_percent:g}%"
        return {
            "MemoryHigh": show(self.memory_high),
            "MemoryMax": show(self.memory_max),
            "CPUQuota": quota,
            "CPUWeight": str(self.cpu_weight),
            "TasksMax": show(self.tasks_max),
        }

    @classmethod
    def parse(cls, wanted: dict[str, str], defaults: Limits, total_memory: int) -> Limits:
        """Return *defaults* with *wanted* (systemd names to strings) laid over; raise ``InvalidArgument`` by name."""
        values: dict[str, object] = {
            "memory_high": defaults.memory_high,
            "memory_max": defaults.memory_max,
            "cpu_quota_percent": defaults.cpu_quota_percent,
            "cpu_weight": defaults.cpu_weight,
            "tasks_max": defaults.tasks_max,
        }
        for key, text in wanted.items():
            none = text.strip().lower() == "infinity"
            match key:
                case "MemoryHigh" | "MemoryMax":
                    field_name = "memory_high" if key == "MemoryHigh" else "memory_max"
                    values[field_name] = None if none else cls._memory(key, text, total_memory)
                case "CPUQuota":
                    values["cpu_quota_percent"] = None if none else cls._quota(text)
                case "CPUWeight":
                    values["cpu_weight"] = cls._whole(key, text, 1, 10_000)
                case "TasksMax":
                    values["tasks_max"] = None if none else cls._whole(key, text, 16, 4_194_304)
                case _:
                    raise CcorchError(
                        ErrorCode.INVALID_ARGUMENT,
                        f"{key!r} is no limit of an instance",
                        "Limits are MemoryHigh, MemoryMax, CPUQuota, CPUWeight and TasksMax.",
                    )
        # A MemoryMax below the default MemoryHigh would make the default an invisible no-op; follow it down.
        high, most = values["memory_high"], values["memory_max"]
        if (
            "MemoryHigh" not in wanted
            and isinstance(most, int)
            and (high is None or (isinstance(high, int) and high >= most))
        ):
            values["memory_high"] = most * 9 // 10
        elif isinstance(most, int) and isinstance(high, int) and high > most:
            raise CcorchError(
                ErrorCode.INVALID_ARGUMENT,
                f"MemoryHigh {wanted.get('MemoryHigh', high)} is above MemoryMax {wanted.get('MemoryMax', most)}",
                "MemoryHigh throttles before MemoryMax kills: make it the smaller one.",
            )
        return cls(**values)  # type: ignore[arg-type]

    @staticmethod
    def _memory(key: str, text: str, total: int) -> int:
        size = parse_size(text, key, total)
        if size < 16 * 1024**2:
            raise CcorchError(
                ErrorCode.INVALID_ARGUMENT, f"{key}={text!r} is too small for any agent", "Give at least 16M."
            )
        return size

    @staticmethod
    def _quota(text: str) -> float:
        match = _PERCENT.match(text.strip())
        if not match or not 1 <= float(match[1]) <= 100_000:
            raise CcorchError(
                ErrorCode.INVALID_ARGUMENT,
                f"CPUQuota={text!r} is no share of CPU time",
                "Write a percentage of one CPU, for example 50% or 200%.",
            )
        return float(match[1])

    @staticmethod
    def _whole(key: str, text: str, least: int, most: int) -> int:
        if not re.fullmatch(r"\s*[0-9]{1,9}\s*", text) or not least <= int(text) <= most:
            raise CcorchError(
                ErrorCode.INVALID_ARGUMENT,
                f"{key}={text!r} is out of range",
                f"Write a whole number, {least} to {most}.",
            )
        return int(text)


@dataclass(slots=True)
class InstanceRecord:
    """An instance as the database holds it. Times are seconds since the epoch."""

    id: int
    project_id: int
    project: str
    name: str
    agent: str
    session_id: str
    branch: str
    base: str
    base_commit: str
    worktree: str
    repository: str
    port: int
    prompt: str
    limits: Limits
    environment: dict[str, str]
    wanted: bool
    """True while the instance ought to run: what a reboot brings back."""
    state: State
    reason: Reason
    reason_text: str
    since: float
    created: float
    restarts: int
    pid: int = 0
    boot_id: str = ""
    started: bool = False
    """True once the agent has had a session, so that the next launch resumes it."""
    doing: str = ""
    options: dict[str, str] = field(default_factory=dict)
    """Free words for the agent profile, for example the command line of a ``command`` agent."""

    @property
    def address(self) -> Address:
        return Address(self.project, self.name)


@dataclass(slots=True)
class ProjectRecord:
    """A registered repository. ``agreed_hash`` is the digest of the set-up steps the user has agreed to."""

    id: int
    name: str
    repository: str
    created: float
    agreed_hash: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """One append-only row: something that happened. ``uid`` makes reports from hooks countable exactly once."""

    kind: str
    message: str
    instance_id: int | None = None
    project_id: int | None = None
    project: str = ""
    instance: str = ""
    actor: str = "ccorchd"
    priority: int = 6
    data: dict[str, object] = field(default_factory=dict)
    uid: str | None = None
    id: int = 0
    time: float = 0.0


@dataclass(frozen=True, slots=True)
class Usage:
    """What a scope uses now. Bytes, seconds, counts; None where this host cannot tell.

    ``source`` is ``cgroup`` where the kernel accounts for the scope, ``processes`` where it was added up from the
    processes in it (no such controller): then ``memory`` is the sum of PSS or RSS and an estimate.
    """

    time: float
    memory: int | None = None
    memory_peak: int | None = None
    cpu_seconds: float | None = None
    tasks: int | None = None
    oom_kills: int | None = None
    memory_pressure: float | None = None
    cpu_pressure: float | None = None
    source: str = "cgroup"


@dataclass(frozen=True, slots=True)
class Report:
    """One message from the hook helper of an instance (see ``ccorchd/agents/hook.py`` for the wire format)."""

    uid: str
    instance_id: int
    event: str
    payload: dict[str, object]
    time: float


@dataclass(frozen=True, slots=True)
class Change:
    """What a report means, as an agent profile reads it. None fields leave things as they are."""

    state: State | None = None
    reason: Reason = Reason.NONE
    reason_text: str = ""
    doing: str | None = None
    session_id: str | None = None
    kind: str = ""
    """Kind of the event row; empty means the report leaves none."""
    message: str = ""
    priority: int = 6
    prompt_confirmed: bool = False
    data: dict[str, object] = field(default_factory=dict)

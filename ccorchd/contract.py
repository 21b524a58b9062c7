# SPDX-License-Identifier: LGPL-2.1-or-later
"""What daemon and clients agree on: names on the bus, error codes with exit statuses, and the keys of records.

This is the only module of ccorchd that clients import, so it needs nothing but the standard library. Changing a value
here changes the public API; ``tests/bus/test_signatures.py`` pins the introspection data that follows from it.
"""

from __future__ import annotations

import enum
import os
import re
from pathlib import Path
from typing import Final

API_VERSION: Final = 1

MANAGER_PATH: Final = "/org/ccorch1"
PROJECT_PATH: Final = "/org/ccorch1/project"
INSTANCE_PATH: Final = "/org/ccorch1/instance"

MANAGER_INTERFACE: Final = "org.ccorch1.Manager"
PROJECT_INTERFACE: Final = "org.ccorch1.Project"
INSTANCE_INTERFACE: Final = "org.ccorch1.Instance"

ERROR_PREFIX: Final = "org.ccorch1.Error."

SUFFIX_VARIABLE: Final = "CCORCH_SUFFIX"
_SUFFIX: Final = re.compile(r"[a-z0-9]{1,16}\Z")


class Naming:
    """Every outside name of one installation, all made from its optional suffix.

    A trial run with the suffix ``run`` uses the bus name ``org.ccorch1_run``, the slice ``ccorch_run.slice`` and
    directories named ``ccorch_run``, so that it never meets an installed ccorch. The underscore keeps the slice from
    becoming a child of ``ccorch.slice`` (systemd.slice(5): a dash is a level of the hierarchy).
    """

    def __init__(self, suffix: str = "") -> None:
        """Raise ValueError if *suffix* is neither empty nor 1 to 16 of ``[a-z0-9]``."""
        if suffix and not _SUFFIX.match(suffix):
            raise ValueError(f"{SUFFIX_VARIABLE}={suffix!r} must be at most 16 of the characters a-z and 0-9")
        self.suffix = suffix
        tail = f"_{suffix}" if suffix else ""
        self.stem = f"ccorch{tail}"
        self.bus_name = f"org.ccorch1{tail}"
        self.slice = f"{self.stem}.slice"
        self.daemon_unit = f"ccorchd{tail}.service"

    @classmethod
    def from_environment(cls) -> Naming:
        """Read the suffix from ``CCORCH_SUFFIX``."""
        return cls(os.environ.get(SUFFIX_VARIABLE, ""))

    def scope(self, project: str, name: str) -> str:
        """Return the scope unit of an instance. Names hold no dot, so the dot separates without doubt."""
        return f"{self.stem}-{project}.{name}.scope"

    def _xdg(self, variable: str, fallback: str) -> Path:
        base = os.environ.get(variable, "")
        return (Path(base) if base.startswith("/") else Path.home() / fallback) / self.stem

    @property
    def config_dir(self) -> Path:
        return self._xdg("XDG_CONFIG_HOME", ".config")

    @property
    def state_dir(self) -> Path:
        return self._xdg("XDG_STATE_HOME", ".local/state")

    @property
    def data_dir(self) -> Path:
        return self._xdg("XDG_DATA_HOME", ".local/share")

    @property
    def runtime_dir(self) -> Path:
        base = os.environ.get("XDG_RUNTIME_DIR", "") or f"/run/user/{os.getuid()}"
        return Path(base) / self.stem


class ErrorCode(enum.StrEnum):
    """The last element of each D-Bus error name. The command line's exit status follows from it."""

    INVALID_ARGUMENT = "InvalidArgument"
    INVALID_NAME = "InvalidName"
    NO_SUCH_PROJECT = "NoSuchProject"
    NO_SUCH_INSTANCE = "NoSuchInstance"
    PROJECT_EXISTS = "ProjectExists"
    INSTANCE_EXISTS = "InstanceExists"
    PROJECT_IN_USE = "ProjectInUse"
    NOT_A_REPOSITORY = "NotARepository"
    NO_COMMITS = "NoCommits"
    BRANCH_IN_USE = "BranchInUse"
    WORKTREE_DIRTY = "WorktreeDirty"
    MERGE_CONFLICT = "MergeConflict"
    GIT_FAILED = "GitFailed"
    WRONG_STATE = "WrongState"
    NOT_READY = "NotReady"
    NOT_DELIVERED = "NotDelivered"
    SETUP_NOT_AGREED = "SetupNotAgreed"
    LIMIT_REACHED = "LimitReached"
    MISSING_PROGRAM = "MissingProgram"
    AGENT_FAILED = "AgentFailed"
    HOST_FAILED = "HostFailed"
    STORAGE_FAILED = "StorageFailed"
    NO_SPACE = "NoSpace"
    CONFIG_INVALID = "ConfigInvalid"
    NOT_ALLOWED = "NotAllowed"
    TIMEOUT = "Timeout"
    SHUTTING_DOWN = "ShuttingDown"
    INTERNAL = "Internal"


class Exit(enum.IntEnum):
    """Exit statuses of ccorchctl, after sysexits(3) where one fits and systemctl(1) for the rest."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    NOT_RUNNING = 3
    NOT_FOUND = 4
    EXISTS = 5
    REFUSED = 6
    TIMEOUT = 7
    INTERRUPTED = 130


EXIT_OF: Final[dict[ErrorCode, Exit]] = {
    ErrorCode.INVALID_ARGUMENT: Exit.USAGE,
    ErrorCode.INVALID_NAME: Exit.USAGE,
    ErrorCode.CONFIG_INVALID: Exit.USAGE,
    ErrorCode.NO_SUCH_PROJECT: Exit.NOT_FOUND,
    ErrorCode.NO_SUCH_INSTANCE: Exit.NOT_FOUND,
    ErrorCode.PROJECT_EXISTS: Exit.EXISTS,
    ErrorCode.INSTANCE_EXISTS: Exit.EXISTS,
    ErrorCode.BRANCH_IN_USE: Exit.EXISTS,
    ErrorCode.PROJECT_IN_USE: Exit.REFUSED,
    ErrorCode.WORKTREE_DIRTY: Exit.REFUSED,
    ErrorCode.MERGE_CONFLICT: Exit.REFUSED,
    ErrorCode.WRONG_STATE: Exit.REFUSED,
    ErrorCode.NOT_READY: Exit.REFUSED,
    ErrorCode.SETUP_NOT_AGREED: Exit.REFUSED,
    ErrorCode.LIMIT_REACHED: Exit.REFUSED,
    ErrorCode.NOT_ALLOWED: Exit.REFUSED,
    ErrorCode.TIMEOUT: Exit.TIMEOUT,
    ErrorCode.NOT_DELIVERED: Exit.TIMEOUT,
}
"""Codes that are not listed exit with :attr:`Exit.FAILURE`."""


def pack_error(message: str, hint: str = "") -> str:
    """Join sentence and hint into the one string of a D-Bus error: the hint is all after the first newline."""
    sentence = " ".join(message.split())
    return f"{sentence}\n{hint}" if hint else sentence


def unpack_error(text: str) -> tuple[str, str]:
    """Return ``(message, hint)`` of a D-Bus error's text; the hint may be empty."""
    message, _, hint = text.partition("\n")
    return message, hint


class State(enum.StrEnum):
    """States of an instance. ``waiting`` and ``failed`` always come with a :class:`Reason`."""

    STARTING = "starting"
    WORKING = "working"
    WAITING = "waiting"
    IDLE = "idle"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def running(self) -> bool:
        """True while the instance has (or is about to have) processes."""
        return self not in (State.STOPPED, State.FAILED)


class Reason(enum.StrEnum):
    """Why an instance is in its state; the words after the colon of a reason text are free."""

    NONE = ""
    SETUP = "setup"
    PERMISSION = "permission"
    ANSWER = "answer"
    QUOTA = "quota"
    EXIT = "exit"
    SIGNAL = "signal"
    OUT_OF_MEMORY = "out-of-memory"
    LOST = "lost"
    REQUESTED = "requested"


LIMITS: Final[tuple[str, ...]] = ("MemoryHigh", "MemoryMax", "CPUQuota", "CPUWeight", "TasksMax")
"""Limits an instance takes, by systemd's own names (systemd.resource-control(5)); values travel as strings."""

INSTANCE_FIELDS: Final[dict[str, str]] = {
    "name": "s",
    "project": "s",
    "address": "s",
    "state": "s",
    "reason": "s",
    "reason_text": "s",
    "since": "t",
    "doing": "s",
    "agent": "s",
    "session_id": "s",
    "branch": "s",
    "base": "s",
    "worktree": "s",
    "unit": "s",
    "pid": "u",
    "port": "u",
    "created": "t",
    "restarts": "u",
    "memory_current": "t",
    "memory_peak": "t",
    "cpu_usage_seconds": "d",
    "tasks_current": "t",
    "oom_kills": "t",
    "memory_pressure": "d",
    "cpu_pressure": "d",
    "measured": "s",
    "limits": "a{ss}",
    "prompt": "s",
    "object": "o",
}
"""Keys of an instance record and their signatures. Times are microseconds since the epoch. A key that is not known (an
instance without processes has no ``pid``) is left out of the record; clients show it as null. ``measured`` says where
the usage figures come from: ``cgroup`` or, where a controller is missing, ``processes`` (an estimate).
"""

PROJECT_FIELDS: Final[dict[str, str]] = {
    "name": "s",
    "repository": "s",
    "created": "t",
    "instances": "u",
    "setup": "as",
    "setup_hash": "s",
    "setup_agreed": "b",
    "object": "o",
}

EVENT_FIELDS: Final[dict[str, str]] = {
    "id": "t",
    "time": "t",
    "kind": "s",
    "project": "s",
    "instance": "s",
    "actor": "s",
    "priority": "y",
    "message": "s",
    "data": "s",
}
"""``priority`` is a syslog priority (3 error, 4 warning, 5 notice, 6 info, 7 debug); ``data`` is a JSON object."""

WORKTREE_FIELDS: Final[dict[str, str]] = {
    "project": "s",
    "instance": "s",
    "path": "s",
    "branch": "s",
    "head": "s",
    "base": "s",
    "ahead": "u",
    "behind": "u",
    "dirty": "b",
    "missing": "b",
    "state": "s",
}

CHECK_FIELDS: Final[dict[str, str]] = {"name": "s", "result": "s", "message": "s", "hint": "s"}
"""One finding of ``doctor``; ``result`` is ``ok``, ``warn`` or ``fail``."""

SETTING_FIELDS: Final[dict[str, str]] = {"key": "s", "value": "s", "default": "s", "source": "s", "help": "s"}

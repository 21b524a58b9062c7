# SPDX-License-Identifier: LGPL-2.1-or-later
"""What every agent profile answers: how to launch it, what its reports mean, what its end means.

A profile is the only place that knows one kind of agent. It is stateless: everything it needs comes in by argument, so
that one object serves all instances and a restarted daemon goes on where the old one ended.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal as signals
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final

from ccorchd.contract import ErrorCode, Reason, State
from ccorchd.errors import CcorchError
from ccorchd.model import Change, InstanceRecord, Report

SOCKET_VARIABLE: Final = "CCORCH_SOCKET"
SPOOL_VARIABLE: Final = "CCORCH_SPOOL"
HOOK_FILE: Final = Path(__file__).resolve().with_name("hook.py")


@dataclass(frozen=True, slots=True)
class Paths:
    """Where one instance keeps its files. *runtime* is private to it (mode 0700) and made anew at each start."""

    runtime: Path
    socket: Path
    """The event socket (``events.sock``) that :mod:`ccorchd.agents.hook` reports to."""
    spool: Path
    """The folder that takes reports while nobody answers on the socket."""
    worktree: Path

    def hook_environment(self) -> dict[str, str]:
        """Return the variables by which the hook helper finds its daemon."""
        return {SOCKET_VARIABLE: str(self.socket), SPOOL_VARIABLE: str(self.spool)}


@dataclass(frozen=True, slots=True)
class Launch:
    """What to exec in the agent's pane."""

    argv: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    """Laid over the instance's own."""
    user_bus: bool = False
    """True if it may reach the user's session bus."""


class Agent(ABC):
    """One kind of agent."""

    kind: ClassVar[str]
    """Its name in settings, records and on the command line."""
    interrupt_keys: ClassVar[tuple[str, ...]] = ("C-c",)
    """tmux key names that make it stop what it does and wait for a prompt."""
    takes_prompts: ClassVar[bool] = False
    """True if text that is pasted into its pane, with Enter, is a prompt."""
    secrets: ClassVar[tuple[str, ...]] = ()
    """Names of the secrets that an instance of this kind may ask for over its socket."""
    confirms_prompts: ClassVar[bool] = False
    """True if a report follows each prompt (:attr:`Change.prompt_confirmed`), so that delivery can be made sure of."""

    def check(self, environment: Mapping[str, str], options: Mapping[str, str]) -> None:  # noqa: B027 - many need none
        """Raise ``MissingProgram`` or ``InvalidArgument`` if it could not be launched with *environment* and *options*.

        Programs are looked for in the PATH of *environment*: the daemon's own is the manager's bare one.
        """

    @abstractmethod
    def prepare(self, instance: InstanceRecord, paths: Paths, *, resume: bool, prompt: str) -> Launch:
        """Write what it needs into ``paths.runtime`` and return what to exec. Blocking; called in a thread.

        With *resume* the launch goes on with ``instance.session_id``; *prompt* may be empty.
        """

    @abstractmethod
    def interpret(self, instance: InstanceRecord, report: Report) -> Change:
        """Return what *report* means. Reports of a kind it does not know change nothing: ``Change()``."""

    def status_file(self, instance: InstanceRecord) -> Path | None:
        """Return the file in which the agent's process keeps its own status, if it has one: read when it changes."""
        return None

    def interpret_status(self, instance: InstanceRecord, text: str) -> Change:
        """Return what the status file's *text* tells beyond the reports."""
        return Change()

    def exit_change(self, status: int | None, signal: int | None) -> Change:
        """Return what the end of its process means; both None if nobody saw how it ended."""
        if signal:
            name = signal_name(signal)
            return Change(
                state=State.FAILED,
                reason=Reason.SIGNAL,
                reason_text=name,
                doing="",
                kind="agent.exited",
                message=f"{self.kind} was killed by {name}",
                priority=4,
                data={"signal": signal},
            )
        if status is None:
            return Change(
                state=State.FAILED,
                reason=Reason.LOST,
                reason_text="how it ended was not seen",
                doing="",
                kind="agent.exited",
                message=f"{self.kind} ended, and how was not seen",
                priority=4,
            )
        return Change(
            state=State.FAILED if status else State.STOPPED,
            reason=Reason.EXIT,
            reason_text=f"exit status {status}",
            doing="",
            kind="agent.exited",
            message=f"{self.kind} exited with status {status}",
            priority=4 if status else 6,
            data={"status": status},
        )

    def session_lost(self, screen: str) -> bool:
        """Tell from the last *screen* whether a launch took the wrong turn between "new session" and "resume"."""
        return False

    def prompt_text(self, text: str) -> str:
        """Return *text* as it may be pasted: whatever the agent would take for a command of its own is defused."""
        return text


def signal_name(number: int) -> str:
    """Return ``SIGKILL`` for 9, ``signal 77`` where there is no name."""
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"


def find_program(command: str, environment: Mapping[str, str], hint: str = "") -> str:
    """Return the absolute path of *command* by the PATH of *environment*; raise ``MissingProgram`` with *hint*."""
    found = shutil.which(command, path=environment.get("PATH", os.defpath))
    if found is None:
        raise CcorchError(
            ErrorCode.MISSING_PROGRAM,
            f"the program {command!r} is not installed, or not in PATH",
            hint or f"PATH is {environment.get('PATH', os.defpath)}",
        )
    return os.path.abspath(found)


def hook_argv(event: str, *, ask_secret: str = "") -> list[str]:
    """Return the hook helper's argument vector for *event*, or for asking the daemon for the secret *ask_secret*.

    ``-I -S`` keeps the agent's PYTHON* variables, its working directory and site-packages out of the helper, and is
    what makes it start in milliseconds.
    """
    secret = ["--ask-secret", ask_secret] if ask_secret else []
    return [sys.executable or "/usr/bin/python3", "-I", "-S", str(HOOK_FILE), event, *secret]


def hook_command(event: str, *, ask_secret: str = "") -> str:
    """Return :func:`hook_argv` as a shell command.

    A status hook must never fail: agents take a failing hook for a veto (Claude Code blocks the tool when a hook exits
    with 2, which is also what Python does when an upgrade has just taken hook.py away).
    """
    command = shlex.join(hook_argv(event, ask_secret=ask_secret))
    return command if ask_secret else f"{command} || :"

# SPDX-License-Identifier: LGPL-2.1-or-later
"""What every method of the API goes through: who called, is it allowed, the audit trail, and errors with names.

dbus-next would send a traceback to the client for an exception it does not know, and no reply at all for a cancelled
call; so nothing but a DBusError leaves a method that carries :func:`guarded`.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import functools
import json
import logging
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

from ccorchd.contract import ERROR_PREFIX, ErrorCode, pack_error
from ccorchd.errors import CcorchError
from ccorchd.history import History
from ccorchd.host.dbus import Bus, DBusCallError, DBusError, Message, MessageType, plain
from ccorchd.model import Event

_log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")

_sender: contextvars.ContextVar[str] = contextvars.ContextVar("sender", default="")
SECRET_METHODS: Final = frozenset({"SetSecret"})
"""Methods whose arguments beyond the first never reach the audit trail."""
_ARGUMENT_LIMIT: Final = 400


class Guard:
    """Knows who calls, and writes down what they did."""

    def __init__(self, bus: Bus, history: History) -> None:
        self._bus = bus
        self._history = history
        self._actors: dict[str, str] = {}
        self._running: set[asyncio.Task[Any]] = set()
        bus.raw.add_message_handler(self._note_sender)

    @staticmethod
    def _note_sender(message: Message) -> None:
        if message.message_type is MessageType.METHOD_CALL:
            _sender.set(message.sender or "")

    async def actor(self) -> str:
        """Return who makes the call that is being handled: UID, PID and program as the bus gives them."""
        sender = _sender.get()
        if sender not in self._actors:
            self._actors[sender] = await self._ask(sender)
            if len(self._actors) > 256:
                self._actors.pop(next(iter(self._actors)))
        return self._actors[sender]

    async def _ask(self, sender: str) -> str:
        try:
            (credentials,) = await self._bus.call(
                "org.freedesktop.DBus",
                "/org/freedesktop/DBus",
                "org.freedesktop.DBus",
                "GetConnectionCredentials",
                "s",
                sender,
            )
        except (CcorchError, DBusCallError):
            return f"gone ({sender})"
        uid, pid = credentials.get("UnixUserID"), credentials.get("ProcessID")
        try:
            program = Path(f"/proc/{pid}/comm").read_text().strip()
        except OSError:
            program = "gone"
        return f"uid {uid}, pid {pid} ({program})"

    def authorise(self, actor: str, member: str) -> None:
        """Refuse who may not call *member*. On a session bus only the same user gets in, so there is nothing to refuse.

        The shared-host deployment asks polkit here; it is one of the two places where the deployments differ.
        """

    async def audit(self, member: str, subject: str, arguments: tuple[object, ...], actor: str, outcome: str) -> None:
        """Add a call of a mutating method to the trail. *outcome* is empty for success."""
        shown = arguments[:1] if member in SECRET_METHODS else arguments
        text = json.dumps([plain(argument) for argument in shown], ensure_ascii=False)
        if len(text) > _ARGUMENT_LIMIT:
            text = text[: _ARGUMENT_LIMIT - 1] + "…"
        project, _, instance = subject.partition("/")
        try:
            await self._history.record(
                Event(
                    "call.refused" if outcome else "call",
                    f"{member}{' ' + subject if subject else ''}: {outcome or 'done'}",
                    actor=actor,
                    project=project,
                    instance=instance,
                    priority=5 if outcome else 6,
                    data={"method": member, "arguments": text, "error": outcome},
                )
            )
        except CcorchError as error:
            _log.error("the audit trail could not be written: %s", error.message)

    def track(self) -> None:
        """Remember the current call, so that shutdown can wait for it."""
        task = asyncio.current_task()
        if task is not None:
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def drain(self, timeout: float) -> None:
        """Wait at most *timeout* seconds for calls that are being handled, then cancel the rest."""
        others = {task for task in self._running if task is not asyncio.current_task()}
        if others:
            _, late = await asyncio.wait(others, timeout=timeout)
            for task in late:
                task.cancel()


def guarded(
    *, mutating: bool
) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Callable[P, Coroutine[Any, Any, R]]]:
    """Wrap a method of an interface. *mutating* calls are authorised and audited, refusals too."""

    def decorate(function: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
        member = function.__name__

        @functools.wraps(function)
        async def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            interface: Any = args[0]
            guard: Guard = interface.guard
            guard.track()
            actor, outcome = "", ""
            try:
                if mutating:
                    actor = await guard.actor()
                    guard.authorise(actor, member)
                return await function(*args, **kwargs)
            except CcorchError as error:
                outcome = f"{error.code}: {error.message}"
                raise DBusError(ERROR_PREFIX + error.code, pack_error(error.message, error.hint)) from error
            except DBusError as error:
                outcome = str(error)
                raise
            except asyncio.CancelledError:
                outcome = "ShuttingDown"
                raise DBusError(
                    ERROR_PREFIX + ErrorCode.SHUTTING_DOWN,
                    pack_error("ccorchd is shutting down", "Try again once it is back."),
                ) from None
            except Exception as error:
                code, sentence, hint = _unexpected(error)
                outcome = f"{code}: {sentence}"
                _log.exception("%s failed", member)
                raise DBusError(ERROR_PREFIX + code, pack_error(sentence, hint)) from error
            finally:
                if mutating:
                    await asyncio.shield(guard.audit(member, interface.subject(), args[1:], actor, outcome))

        return wrapper

    return decorate


def _unexpected(error: Exception) -> tuple[ErrorCode, str, str]:
    """Name an exception that nobody translated; its text stays in the journal."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ErrorCode.NO_SPACE, "the disk is full", "Free some space and try again; nothing was lost."
    return (
        ErrorCode.INTERNAL,
        f"something went wrong inside ccorchd ({type(error).__name__})",
        f"Please report it with the output of: journalctl --user -u ccorchd _PID={os.getpid()}",
    )


__all__ = ["Guard", "guarded"]

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
import inspect
import json
import logging
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

from ccorchd.contract import ERROR_PREFIX, ErrorCode, pack_error
from ccorchd.errors import CcorchError
from ccorchd.history import History
from ccorchd.host.dbus import (
    Bus,
    DBusCallError,
    DBusError,
    Message,
    MessageType,
    PropertyAccess,
    ServiceInterface,
    Variant,
    dbus_property,
    method,
    plain,
    signal,
)
from ccorchd.model import Event

_log = logging.getLogger(__name__)

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
        return f"uid {uid}, pid {pid} ({_program(pid)})"

    def authorise(self, actor: str, member: str) -> None:
        """Refuse who may not call *member*. On a session bus only the same user gets in, so there is nothing to refuse.

        The shared-host deployment asks polkit here; it is one of the two places where the deployments differ.
        """

    async def audit(self, member: str, subject: str, arguments: tuple[object, ...], actor: str, outcome: str) -> None:
        """Add a call of a mutating method to the trail. *outcome* is empty for success."""
        shown = arguments[:1] if member in SECRET_METHODS else arguments
        text = json.dumps([_shown(plain(argument)) for argument in shown], ensure_ascii=False)
        if len(text) > _ARGUMENT_LIMIT:
            text = text[: _ARGUMENT_LIMIT - 1] + "…"
        project, _, instance = subject.partition("/")
        try:
            await self._history.record(
                Event(
                    "audit.refused" if outcome else "audit.call",
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
        """Wait at most *timeout* seconds for calls that are being handled, then cancel the rest.

        Returns when those have undone what they had begun and stand in the audit trail: both need what is closed next.
        """
        others = {task for task in self._running if task is not asyncio.current_task()}
        if others:
            _, late = await asyncio.wait(others, timeout=timeout)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)


def _shown(argument: Any) -> Any:
    """Return an argument for the trail: of environments only the names, their values are nobody's business."""
    if not isinstance(argument, dict):
        return argument
    return {key: sorted(value) if key in ("environment", "variables") else value for key, value in argument.items()}


def _program(pid: object) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "gone"


def _error(code: ErrorCode, message: str, hint: str) -> DBusError:
    return DBusError(ERROR_PREFIX + code, pack_error(message, hint))


Handler = Callable[..., Coroutine[Any, Any, Any]]


def exposed(inputs: str = "", output: str = "", *, mutating: bool) -> Callable[[Handler], Handler]:
    """Make an async function a method of the API.

    *inputs* holds the D-Bus signature of each argument, with a space between them, *output* that of the answer: given
    here rather than as annotations, which stay what Python and mypy take them for. *mutating* calls are authorised and
    audited, refusals too.
    """

    def decorate(function: Handler) -> Handler:
        wrapper = _guarded(function, mutating=mutating)
        names = list(inspect.signature(function).parameters)
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [inspect.Parameter(names[0], kind)]
        for name, signature in zip(names[1:], inputs.split(), strict=True):
            parameters.append(inspect.Parameter(name, kind, annotation=signature))
        # dbus-next reads signatures by inspect.signature(), which prefers this attribute.
        returns = output or inspect.Signature.empty
        wrapper.__signature__ = inspect.Signature(parameters, return_annotation=returns)  # type: ignore[attr-defined]
        exported: Handler = method()(wrapper)
        exported.__dict__["ccorch_mutating"] = mutating
        return exported

    return decorate


def readable(signature: str) -> Callable[[Callable[[Any], Any]], Any]:
    """Make a getter a read-only property of the D-Bus type *signature*."""

    def decorate(function: Callable[[Any], Any]) -> Any:
        def getter(self: Any) -> Any:
            return function(self)

        getter.__name__ = function.__name__
        getter.__doc__ = function.__doc__
        getter.__annotations__ = {"return": signature}
        return dbus_property(access=PropertyAccess.READ)(getter)

    return decorate


def property_values(interface: ServiceInterface) -> dict[str, Variant]:
    """Return every :func:`readable` property of *interface*."""
    found = ServiceInterface._get_properties(interface)
    return {prop.name: Variant(prop.signature, getattr(interface, prop.name)) for prop in found}


def announced(signature: str) -> Callable[[Callable[[Any, Any], Any]], Any]:
    """Make a function that returns its argument a signal with one argument of the D-Bus type *signature*."""

    def decorate(function: Callable[[Any, Any], Any]) -> Any:
        def emitter(self: Any, value: Any) -> Any:
            return function(self, value)

        emitter.__name__ = function.__name__
        emitter.__annotations__ = {"return": signature}
        return signal()(emitter)

    return decorate


def _guarded(function: Handler, *, mutating: bool) -> Handler:
    member = function.__name__

    @functools.wraps(function)
    async def wrapper(*args: Any) -> Any:
        interface = args[0]
        guard: Guard = interface.guard
        guard.track()
        actor, outcome = "", ""
        try:
            if mutating:
                actor = await guard.actor()
                guard.authorise(actor, member)
            return await function(*args)
        except CcorchError as error:
            outcome = f"{error.code}: {error.message}"
            raise _error(error.code, error.message, error.hint) from error
        except asyncio.CancelledError:
            outcome = ErrorCode.SHUTTING_DOWN
            raise _error(ErrorCode.SHUTTING_DOWN, "ccorchd is shutting down", "Try again once it is back.") from None
        except Exception as error:
            code, sentence, hint = _unexpected(error)
            outcome = f"{code}: {sentence}"
            _log.exception("%s failed", member)
            raise _error(code, sentence, hint) from error
        finally:
            if mutating:
                await asyncio.shield(guard.audit(member, interface.subject(member, args[1:]), args[1:], actor, outcome))

    return wrapper


def _unexpected(error: Exception) -> tuple[ErrorCode, str, str]:
    """Name an exception that nobody translated; its text stays in the journal."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ErrorCode.NO_SPACE, "the disk is full", "Free some space and try again; nothing was lost."
    return (
        ErrorCode.INTERNAL,
        f"something went wrong inside ccorchd ({type(error).__name__})",
        f"Please report it with the output of: journalctl --user -u ccorchd _PID={os.getpid()}",
    )

# SPDX-License-Identifier: LGPL-2.1-or-later
"""What can go wrong on this side of the bus, and the one place where it becomes text and an exit status.

Light on purpose: ``--help`` and a mistyped verb need it, and neither needs a bus.
"""

from __future__ import annotations

import json
from typing import Final

from ccorchd.contract import ERROR_PREFIX, EXIT_OF, ErrorCode, Exit, Naming, unpack_error

NO_BUS: Final = "NoBus"
"""There is no message bus to talk to."""
NOT_RUNNING: Final = "NotRunning"
"""ccorchd is not there, and the bus did not (or should not) start it."""
USAGE: Final = "Usage"
"""The command line itself is wrong."""
AWAY: Final = frozenset({NOT_RUNNING, str(ErrorCode.TIMEOUT), str(ErrorCode.SHUTTING_DOWN)})
"""Codes of a daemon that is restarting: who follows it waits until it is back."""
UNEXPECTED: Final = "Unexpected"


class Failure(Exception):
    """Something a person can act on: a code for machines, one sentence, and a hint (may be empty).

    *code* is one of the contract's error codes or of the constants above; *status* is the exit status, by default the
    contract's for that code.
    """

    def __init__(self, code: str, message: str, hint: str = "", *, status: Exit | None = None) -> None:
        super().__init__(message)
        self.code = str(code)
        self.message = message
        self.hint = hint
        self.status = status if status is not None else _status(self.code)


def _status(code: str) -> Exit:
    match code:
        case "Usage":
            return Exit.USAGE
        case "NotRunning":
            return Exit.NOT_RUNNING
    try:
        return EXIT_OF.get(ErrorCode(code), Exit.FAILURE)
    except ValueError:
        return Exit.FAILURE


def usage(message: str, hint: str = "") -> Failure:
    """Return the failure of a command line that cannot be meant."""
    return Failure(USAGE, message, hint)


def render(failure: Failure, *, as_json: bool = False) -> str:
    """Return the text for standard error, with its line end: two lines at most, or one JSON object."""
    if as_json:
        error = {
            "code": failure.code,
            "message": failure.message,
            "hint": failure.hint or None,
            "exit_status": int(failure.status),
        }
        return json.dumps({"error": error}, ensure_ascii=False) + "\n"
    lines = [f"ccorchctl: {printable(failure.message)}"]
    if failure.hint:
        lines.append(f"Hint: {printable(failure.hint)}")
    return "\n".join(lines) + "\n"


def printable(text: str) -> str:
    """Return *text* on one line without control characters: it may quote what an agent or a repository wrote."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split(" ")).strip()


def not_running(naming: Naming) -> Failure:
    """Return the failure of a call that was not to start the daemon, and found none."""
    return Failure(
        NOT_RUNNING,
        f"the daemon is not running ({naming.bus_name})",
        f"Start it: systemctl --user start {naming.daemon_unit}; "
        f"look at it: systemctl --user status {naming.daemon_unit}",
    )


def from_bus(name: str, text: str, naming: Naming, *, member: str = "") -> Failure:
    """Translate a D-Bus error (*name*, *text*) that came back from a call of *member*.

    Sources: the Error names of the D-Bus specification's reference implementation (dbus-protocol.h) and those with
    which systemd and dbus-daemon answer when activation fails.
    """
    if name.startswith(ERROR_PREFIX):
        message, hint = unpack_error(text)
        return Failure(name[len(ERROR_PREFIX) :], message, hint)
    unit = naming.daemon_unit
    match name.removeprefix("org.freedesktop.DBus.Error."):
        case "ServiceUnknown" | "NameHasNoOwner":
            return Failure(
                NOT_RUNNING,
                f"the daemon is not running, and the bus knows no way to start it ({naming.bus_name})",
                f"Start it: systemctl --user start {unit}; look at it: systemctl --user status {unit}",
            )
        case "TimedOut" | "NoReply" | "Timeout":
            return Failure(
                ErrorCode.TIMEOUT,
                f"the daemon did not answer{_to(member)} in time",
                f"systemctl --user status {unit}",
            )
        case "Disconnected":
            return Failure(NO_BUS, "the message bus closed the connection", f"systemctl --user status {unit}")
        case "AccessDenied" | "AuthFailed":
            return Failure(ErrorCode.NOT_ALLOWED, f"the message bus does not let this user call the daemon: {text}")
        case "UnknownMethod" | "UnknownInterface" | "UnknownProperty" | "InvalidArgs" | "InvalidSignature":
            return Failure(
                UNEXPECTED,
                f"the daemon does not understand{_to(member) or ' the call'}: it may be of another version",
                f"Compare with 'ccorchctl version'; after an upgrade: systemctl --user restart {unit}",
            )
        case "UnknownObject":
            return Failure(ErrorCode.NO_SUCH_INSTANCE, "that object is gone: it was removed a moment ago")
    if ".Spawn." in name or name.startswith("org.freedesktop.systemd1."):
        return Failure(
            NOT_RUNNING,
            f"the daemon could not be started: {text.rstrip('.')}",
            f"systemctl --user status {unit}; journalctl --user -u {unit} -n 20",
        )
    return Failure(UNEXPECTED, f"the daemon answered with {name}: {text}", f"journalctl --user -u {unit} -n 20")


def _to(member: str) -> str:
    return f" to {member}" if member else ""

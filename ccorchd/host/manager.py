# SPDX-License-Identifier: LGPL-2.1-or-later
"""Talking to the user manager of our own UID: connections, commands, properties, errors. The owner of pystemd.

Commands go on the manager's private socket, which works without a session bus: one short connection for each command
(0.05 ms to open), because a lasting one breaks at ``daemon-reexec`` and collects the manager's signals unread. pystemd
holds the GIL while it waits, hence a time-out far below sd-bus's 25 seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

from pystemd.dbusexc import DBusBaseError
from pystemd.dbuslib import DBus, DBusAddress
from pystemd.systemd1 import Manager
from pystemd.systemd1.unit_signatures import KNOWN_UNIT_SIGNATURES

from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError

_log: Final = logging.getLogger(__name__)
_T = TypeVar("_T")

NAME: Final = "org.freedesktop.systemd1"
PATH: Final = "/org/freedesktop/systemd1"
UNITS: Final = f"{PATH}/unit"
MANAGER: Final = f"{NAME}.Manager"
UNIT: Final = f"{NAME}.Unit"
SCOPE: Final = f"{NAME}.Scope"

CALL_TIMEOUT: Final = 5.0
"""Seconds that one call may take."""

_STOP_QUESTION_TIMEOUT: Final = 2.0

for _key, _signature in {
    # pystemd's table lacks these in every version (up to 0.15).
    b"PIDs": b"au",
    b"CPUAccounting": b"b",
    b"CPUWeight": b"t",
    b"OOMPolicy": b"s",
    b"SendSIGHUP": b"b",
    b"TasksAccounting": b"b",
}.items():
    KNOWN_UNIT_SIGNATURES.setdefault(_key, _signature)


class UserManager:
    """Runs commands in one thread of its own.

    Work is a function of the connection, for :func:`property_of`, and of pystemd's manager interface, whose methods and
    properties have systemd's names and take and return bytes. What goes wrong comes out as ``HostFailed`` when the
    manager refuses or cannot be reached, and as ``Timeout`` when it does not answer.
    """

    def __init__(self) -> None:
        """Connect to nothing yet."""
        self._thread = ThreadPoolExecutor(1, "systemd")
        self._manager: Any = None

    def close(self) -> None:
        """Take no more commands. Does not wait for the one that runs."""
        self._thread.shutdown(wait=False)

    async def ask(self, what: str, work: Callable[[Any, Any], _T]) -> _T:
        """Return ``work(connection, manager interface)``; *what* says in errors what the manager was to do."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, work)
        except (DBusBaseError, OSError) as error:
            raise _translated(what, error) from error

    async def ask_unless(self, what: str, work: Callable[[Any, Any], _T], *answers: str) -> _T | None:
        """Do the same, but return None when the manager answers with an error of one of the names *answers*."""

        def quiet(bus: Any, manager: Any) -> _T | None:
            try:
                return work(bus, manager)
            except DBusBaseError as error:
                if any(_error_is(error, answer) for answer in answers):
                    return None
                raise

        return await self.ask(what, quiet)

    async def ask_unless_gone(self, what: str, work: Callable[[Any, Any], _T]) -> _T | None:
        """Do the same, but return None when the manager does not know the unit (any more)."""
        return await self.ask_unless(what, work, "NoSuchUnit", "UnitInactive")

    def _run(self, work: Callable[[Any, Any], _T]) -> _T:
        with _connection(_user_manager_address(), CALL_TIMEOUT) as bus:
            if self._manager is None:
                manager = Manager(bus=bus)
                manager.load()  # introspection, 8 ms: once
                self._manager = manager
            self._manager._bus = bus
            try:
                return work(bus, self._manager.Manager)
            finally:
                self._manager._bus = None


async def stop_was_requested(unit: str) -> bool:
    """Tell whether somebody is stopping our own service *unit* for good, as opposed to a restart or a log-out.

    Asks the manager that runs us, on a connection of its own, for at most two seconds. True only for a job of type
    ``stop`` while that manager itself is not stopping; every doubt and every error is False, because False keeps
    the instances alive.
    """
    try:
        address = _user_manager_address() if _runs_in_user_manager() else None
        async with asyncio.timeout(_STOP_QUESTION_TIMEOUT):
            return await asyncio.to_thread(_stop_requested, unit, address)
    except Exception as error:
        _log.warning("cannot tell why %s is stopped, so instances stay: %s", unit, error)
        return False


def _stop_requested(unit: str, address: str | None) -> bool:
    with _connection(address, _STOP_QUESTION_TIMEOUT / 2) as bus:
        job, job_path = property_of(bus, unit_path(unit), UNIT, "Job", "(uo)")
        if not job:
            return False
        path = job_path.decode() if isinstance(job_path, bytes) else job_path
        stopping = property_of(bus, path, f"{NAME}.Job", "JobType") == "stop"
        # Last, so that an exit of the manager that began meanwhile counts.
        return stopping and property_of(bus, PATH, MANAGER, "SystemState") in ("running", "degraded", "starting")


def _runs_in_user_manager() -> bool:
    with contextlib.suppress(OSError):
        return f"/user@{os.getuid()}.service/" in Path("/proc/self/cgroup").read_text("utf-8", "replace")
    return False


# For work: what it asks for and what it gets


def loaded_unit(manager: Any, unit: str) -> str | None:
    """Return the object path of *unit*, or None when the manager has none of that name."""
    try:
        return str(manager.GetUnit(unit.encode()).decode())
    except DBusBaseError as error:
        if _error_is(error, "NoSuchUnit"):
            return None
        raise


def property_of(bus: Any, path: str, interface: str, name: str, signature: str = "s") -> Any:
    """Return a property of the object at *path*, of the D-Bus type *signature*; what is bytes comes as text."""
    value = bus.get_property(NAME.encode(), path.encode(), interface.encode(), name.encode(), signature.encode())
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def unit_path(unit: str) -> str:
    """Return the unit's object path: sd_bus_path_encode(3)."""
    escaped = "".join(c if c.isascii() and c.isalnum() else f"_{ord(c):02x}" for c in unit)
    if escaped[:1].isdigit():
        escaped = f"_{ord(escaped[0]):02x}{escaped[1:]}"
    return f"{UNITS}/{escaped}"


def unit_name(path: str) -> str:
    """Return the unit whose object path is *path*."""
    escaped = path.rpartition("/")[2]
    return re.sub(r"_([0-9a-f]{2})", lambda match: chr(int(match[1], 16)), escaped)


# Connections

_environment_lock: Final = threading.Lock()


@contextlib.contextmanager
def _connection(address: str | None, timeout: float) -> Iterator[Any]:
    """Open a connection to the manager at *address*, or to the system manager, whose calls take at most *timeout*.

    sd-bus has no other way to say that to pystemd than its variable, which it reads at the first call. Nobody may set
    it meanwhile, hence the lock.
    """
    with _environment_lock:
        before = os.environ.get("SYSTEMD_BUS_TIMEOUT")
        os.environ["SYSTEMD_BUS_TIMEOUT"] = f"{timeout:g}s"
        try:
            if address is None:
                connection = DBus()
            else:
                # Only the private socket is the manager itself; behind the one named "bus" there is a message bus.
                peer = address.endswith("/private")
                if peer:
                    _await_answer(address.partition("=")[2], timeout)
                connection = DBusAddress(address.encode(), peer)
            with connection as bus:
                yield bus
        finally:
            if before is None:
                del os.environ["SYSTEMD_BUS_TIMEOUT"]
            else:
                os.environ["SYSTEMD_BUS_TIMEOUT"] = before


def _await_answer(path: str, timeout: float) -> None:
    """Wait until the manager answers at its socket *path*. Raise TimeoutError after *timeout* seconds, or OSError.

    It begins an authentication and leaves. sd-bus would wait 90 seconds for that, with the GIL held and no variable to
    make it shorter, when the manager hangs.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(timeout)
        probe.connect(path)
        probe.sendall(b"\0AUTH EXTERNAL " + str(os.getuid()).encode().hex().encode() + b"\r\n")
        if not probe.recv(1):
            raise ConnectionResetError(errno.ECONNRESET, "The user manager hung up")


def _runtime_dir() -> Path:
    return Path(os.environ.get("XDG_RUNTIME_DIR", "") or f"/run/user/{os.getuid()}")


def _user_manager_address() -> str:
    private = _runtime_dir() / "systemd/private"
    return f"unix:path={private if private.exists() else _runtime_dir() / 'bus'}"


# Errors


def _error_is(error: DBusBaseError, name: str) -> bool:
    """Tell whether systemd answered with *name*: pystemd has classes for some errors, and names for the others."""
    full = error.err_name.decode() if isinstance(error.err_name, bytes) else str(error.err_name)
    return full.rsplit(".", 1)[-1] == name or type(error).__name__ == f"DBus{name}Error"


def _error_text(error: DBusBaseError | OSError) -> str:
    text = error.strerror if isinstance(error, OSError) else error.err_message
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text or error)


def _translated(what: str, error: DBusBaseError | OSError) -> CcorchError:
    if isinstance(error, TimeoutError) or error.errno == -errno.ETIMEDOUT:
        return CcorchError(ErrorCode.TIMEOUT, f"The user manager did not {what} within {CALL_TIMEOUT:g} seconds")
    if not _runtime_dir().joinpath("systemd").exists():
        return CcorchError(
            ErrorCode.HOST_FAILED,
            f"There is no systemd user manager for UID {os.getuid()}",
            "Log in through PAM (ssh, a console), or keep one running: loginctl enable-linger $USER",
        )
    return CcorchError(ErrorCode.HOST_FAILED, f"The user manager did not {what}: {_error_text(error)}")

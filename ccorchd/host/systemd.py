# SPDX-License-Identifier: LGPL-2.1-or-later
"""The user manager of our own UID: scopes, their limits, and how they end.

Commands go through manager.py. Signals come through the session bus, because they must reach the event loop at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pwd
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ccorchd.contract import ErrorCode, Naming
from ccorchd.errors import CcorchError
from ccorchd.host.cgroup import KILL_TIMEOUT, cgroup_path, empty_cgroup, members, populated, unfreeze
from ccorchd.host.dbus import Bus, DBusCallError, Message, Subscription, plain
from ccorchd.host.manager import (
    CALL_TIMEOUT,
    MANAGER,
    NAME,
    PATH,
    SCOPE,
    UNIT,
    UNITS,
    UserManager,
    loaded_unit,
    property_of,
    stop_was_requested,
    unit_name,
    unit_path,
)
from ccorchd.model import Limits

__all__ = ["ScopeStatus", "Systemd", "cgroup_path", "empty_cgroup", "members", "populated"]

_log: Final = logging.getLogger(__name__)

_LINGER: Final = Path("/var/lib/systemd/linger")
_LOGIN1: Final = "org.freedesktop.login1"
_LOGIN1_PATH: Final = "/org/freedesktop/login1"

_INFINITY: Final = 2**64 - 1
_START_TIMEOUT: Final = 15.0

_SYSTEMDS_OWN: Final = re.compile(
    r"(?:MANAGERPID(?:FDID)?|SYSTEMD_\w+|INVOCATION_ID|NOTIFY_SOCKET|JOURNAL_STREAM|FDSTORE|LISTEN_\w+|WATCHDOG_\w+"
    r"|CREDENTIALS_DIRECTORY|(?:RUNTIME|STATE|CACHE|LOGS|CONFIGURATION)_DIRECTORY|MEMORY_PRESSURE_\w+|MAINPID)\Z"
)
"""Variables that systemd sets for itself or for one service (systemd.exec(5)), and no business of an agent."""


@dataclass(frozen=True, slots=True)
class ScopeStatus:
    """A scope as its manager sees it. *result* is ``success`` or why it failed (``oom-kill``, ``timeout`` …).

    *control_group* is the path below the cgroup mount, empty once the scope has none: see :func:`cgroup_path`.
    """

    active_state: str
    sub_state: str
    result: str
    control_group: str

    @property
    def ended(self) -> bool:
        return self.active_state in ("inactive", "failed")


def _status(bus: Any, manager: Any, unit: str) -> ScopeStatus | None:
    path = loaded_unit(manager, unit)
    return None if path is None else _status_at(bus, path)


def _status_at(bus: Any, path: str) -> ScopeStatus:
    return ScopeStatus(
        active_state=property_of(bus, path, UNIT, "ActiveState"),
        sub_state=property_of(bus, path, UNIT, "SubState"),
        result=property_of(bus, path, SCOPE, "Result"),
        control_group=property_of(bus, path, SCOPE, "ControlGroup"),
    )


def _limit_properties(limits: Limits) -> dict[bytes, Any]:
    def most(value: int | None) -> int:
        return _INFINITY if value is None else value

    quota = limits.cpu_quota_percent
    return {
        b"MemoryHigh": most(limits.memory_high),
        b"MemoryMax": most(limits.memory_max),
        b"CPUWeight": limits.cpu_weight,
        b"CPUQuotaPerSecUSec": _INFINITY if quota is None else int(quota * 10_000),  # 100 % is 1 s each second
        b"TasksMax": most(limits.tasks_max),
    }


class Systemd:
    """The user manager of our own UID. Made by :meth:`open`.

    Methods raise ``HostFailed`` when the manager refuses or cannot be reached, and ``Timeout`` when it does not answer.
    """

    def __init__(self, naming: Naming) -> None:
        """Use :meth:`open`."""
        self.version = 0
        """systemd's major version, for example 252."""
        self._naming = naming
        self._manager = UserManager()
        self._bus: Bus | None = None
        self._subscriptions: list[Subscription] = []
        self._callbacks: list[Callable[[str, str], None]] = []
        self._active: set[str] = set()
        self._results: dict[str, str] = {}
        self._waiting: dict[str, asyncio.Future[str]] = {}
        self._finished: dict[str, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(cls, naming: Naming, bus: Bus) -> Systemd:
        """Connect to the manager. *bus* is the session bus of our own UID, which carries the manager's signals.

        Raise ``HostFailed`` when there is no user manager.
        """
        systemd = cls(naming)
        try:
            version = await systemd._manager.ask("ask for its version", lambda _, manager: manager.Version)
            if match := re.match(rb"\d+", version):
                systemd.version = int(match[0])
            await systemd.rebind(bus)
        except BaseException:
            await systemd.close()
            raise
        return systemd

    async def close(self) -> None:
        """Stop listening. Scopes live on."""
        for task in tuple(self._tasks):
            task.cancel()
        for subscription in self._subscriptions:
            subscription.cancel()
        self._subscriptions.clear()
        self._manager.close()

    async def rebind(self, bus: Bus) -> None:
        """Take the manager's signals from *bus* from now on, and report the scopes that ended meanwhile."""
        for subscription in self._subscriptions:
            subscription.cancel()
        self._bus = bus
        listen = bus.on_signal
        self._subscriptions = [
            listen(sender=NAME, path=PATH, interface=MANAGER, member="JobRemoved", callback=self._job_removed),
            listen(sender=NAME, path=PATH, interface=MANAGER, member="UnitRemoved", callback=self._unit_removed),
            listen(
                sender=NAME,
                path_namespace=UNITS,
                interface="org.freedesktop.DBus.Properties",
                member="PropertiesChanged",
                callback=self._unit_changed,
            ),
            listen(
                sender="org.freedesktop.DBus",
                interface="org.freedesktop.DBus",
                member="NameOwnerChanged",
                callback=self._owner_changed,
            ),
        ]
        await self._subscribe()

    async def _subscribe(self) -> None:
        assert self._bus is not None
        try:
            await self._bus.call(NAME, PATH, MANAGER, "Subscribe")
        except DBusCallError as error:
            if not error.name.endswith(".AlreadySubscribed"):
                raise CcorchError(
                    ErrorCode.HOST_FAILED, f"The user manager sends us no signals: {error.text or error.name}"
                ) from error
        alive = {unit for unit, status in (await self.scopes()).items() if not status.ended}
        before, self._active = self._active, self._active | alive
        for unit in before - alive:
            if (status := await self.scope_status(unit)) is not None:
                self._results[unit] = status.result
            self._gone(unit)

    # Scopes

    async def start_scope(self, unit: str, pid: int, *, description: str, limits: Limits, stop_timeout: float) -> None:
        """Put the living process *pid* into the new scope *unit* in our slice.

        *stop_timeout* is how many seconds its processes get between SIGTERM and SIGKILL. The failed remains of an
        earlier scope of that name are cleared away; one with processes is not (``WrongState``). Raise ``HostFailed``
        when the process is dead by the end: systemd itself would keep such a scope active for ever.
        """
        properties: dict[bytes, Any] = {
            b"Description": description.encode("utf-8", "replace"),
            b"Slice": self._naming.slice.encode(),
            b"PIDs": [pid],
            b"TimeoutStopUSec": int(stop_timeout * 1_000_000),
            b"SendSIGHUP": True,
            b"OOMPolicy": b"continue",
            b"MemoryAccounting": True,
            b"CPUAccounting": True,
            b"TasksAccounting": True,
            **_limit_properties(limits),
        }

        def start(_: Any, manager: Any) -> str:
            self._results.pop(unit, None)
            return str(manager.StartTransientUnit(unit.encode(), b"fail", properties).decode())

        # Nearly always nothing is in the way, and the manager refuses a unit that it knows in any state: ask later.
        job = await self._manager.ask_unless(f"start {unit}", start, "UnitExists")
        if job is None:
            await self._make_way(unit)
            job = await self._manager.ask_unless(f"start {unit}", start, "UnitExists")
        if job is None:
            raise CcorchError(ErrorCode.WRONG_STATE, f"{unit} has just been started by somebody else")
        result = await self._job_result(job, unit, _START_TIMEOUT)
        if result in ("done", "") and _lives_in(pid, unit):
            self._active.add(unit)
            return
        await self.stop_scope(unit, timeout=stop_timeout)
        await self.reset_failed(unit)
        if result is None:
            raise CcorchError(ErrorCode.TIMEOUT, f"systemd did not start {unit} within {_START_TIMEOUT:g} seconds")
        why = f"the job ended with {result!r}" if result not in ("done", "") else f"process {pid} has already ended"
        raise CcorchError(ErrorCode.HOST_FAILED, f"systemd did not start {unit}: {why}")

    async def _make_way(self, unit: str) -> None:
        deadline = time.monotonic() + CALL_TIMEOUT
        while (status := await self.scope_status(unit)) is not None:
            if not status.ended and status.active_state != "deactivating":
                raise CcorchError(
                    ErrorCode.WRONG_STATE,
                    f"{unit} exists already and is {status.active_state}",
                    f"Stop it first: systemctl --user stop {unit}",
                )
            if status.active_state == "failed":
                await self.reset_failed(unit)
            elif time.monotonic() > deadline:
                raise CcorchError(ErrorCode.TIMEOUT, f"An earlier {unit} does not go away: it is {status.sub_state}")
            await asyncio.sleep(0.01)  # systemd collects an inactive unit when it is next idle

    async def stop_scope(self, unit: str, *, timeout: float) -> None:
        """End every process of the scope: SIGTERM, and SIGKILL after *timeout* seconds.

        Return when its cgroup is empty or gone and the manager knows it. Quiet when there is no such scope. Raise
        ``Timeout`` when a process survives even SIGKILL.
        """
        cgroup = await self._cgroup_of(unit)
        deadline = time.monotonic() + timeout
        # More than once because systemd 257 answers "frozen" when somebody freezes between our thaw and our stop.
        for _ in range(3):
            status = await self.scope_status(unit)
            if status is None or status.ended:
                break
            await self._thaw(unit, cgroup)
            job = await self._manager.ask_unless_gone(
                f"stop {unit}", lambda _, manager: manager.StopUnit(unit.encode(), b"replace").decode()
            )
            if job is None or await self._job_result(job, unit, max(deadline - time.monotonic(), 0)) in ("done", None):
                break
        if cgroup is not None and populated(cgroup):
            unfreeze(cgroup)
            await empty_cgroup(cgroup)
        await self._settle(unit)

    async def _settle(self, unit: str) -> None:
        """Wait until the manager has seen the end of the scope, so that nobody finds it active afterwards."""
        deadline = time.monotonic() + KILL_TIMEOUT
        while (status := await self.scope_status(unit)) is not None and not status.ended:
            if time.monotonic() > deadline:
                raise CcorchError(ErrorCode.TIMEOUT, f"{unit} is empty, but systemd still calls it {status.sub_state}")
            await asyncio.sleep(0.01)

    async def _cgroup_of(self, unit: str) -> Path | None:
        """Return the cgroup of the scope, also of one that has failed and of which systemd has forgotten it."""

        def ask(bus: Any, manager: Any) -> str:
            if (status := _status(bus, manager, unit)) is not None and status.control_group:
                return status.control_group
            parent = property_of(bus, unit_path(self._naming.slice), f"{NAME}.Slice", "ControlGroup")
            return f"{parent}/{unit}" if parent else ""

        group = await self._manager.ask(f"find the cgroup of {unit}", ask)
        # Nothing but the scope's own: what this returns gets killed.
        return cgroup_path(group) if group.endswith(f"/{unit}") else None

    async def _thaw(self, unit: str, cgroup: Path | None) -> None:
        def thaw(bus: Any, manager: Any) -> None:
            if property_of(bus, unit_path(unit), UNIT, "FreezerState") != "running":
                manager.ThawUnit(unit.encode())

        try:
            await self._manager.ask_unless_gone(f"thaw {unit}", thaw)
        except CcorchError as error:
            _log.warning("%s", error)  # the stop itself may still succeed, and SIGKILL works on frozen processes
        if cgroup is not None:
            unfreeze(cgroup)

    async def reset_failed(self, unit: str) -> None:
        """Let the manager forget a failed scope. Quiet when there is none."""
        await self._manager.ask_unless_gone(f"reset {unit}", lambda _, manager: manager.ResetFailedUnit(unit.encode()))

    async def set_limits(self, unit: str, limits: Limits) -> None:
        """Change the limits of a running scope, until it ends. Raise ``HostFailed`` when there is no such scope."""
        await self._manager.ask(
            f"set the limits of {unit}",
            lambda _, manager: manager.SetUnitProperties(unit.encode(), True, _limit_properties(limits)),
        )

    async def scopes(self) -> dict[str, ScopeStatus]:
        """Return every scope of this installation that the manager has loaded, failed ones included."""

        def ask(bus: Any, manager: Any) -> dict[str, ScopeStatus]:
            rows = manager.ListUnitsByPatterns([], [f"{self._naming.stem}-*.scope".encode()])
            return {row[0].decode(): _status_at(bus, row[6].decode()) for row in rows}

        return await self._manager.ask("list our scopes", ask)

    async def scope_status(self, unit: str) -> ScopeStatus | None:
        """Return the scope as the manager sees it, or None when it has none of that name."""
        return await self._manager.ask(f"look at {unit}", lambda bus, manager: _status(bus, manager, unit))

    def on_scope_gone(self, callback: Callable[[str, str], None]) -> None:
        """Call *callback* with unit and result, once for each scope of ours that becomes inactive or failed."""
        self._callbacks.append(callback)

    # The manager

    async def environment(self) -> dict[str, str]:
        """Return the manager's environment block (it has environment.d(5)), without what systemd sets for itself."""
        lines = await self._manager.ask("ask for its environment", lambda _, manager: manager.Environment)
        pairs = (line.decode("utf-8", "surrogateescape").partition("=") for line in lines)
        return {key: value for key, _, value in pairs if not _SYSTEMDS_OWN.match(key)}

    async def manager_state(self) -> str:
        """Return the manager's ``SystemState``: ``running``, ``degraded``, ``stopping`` …"""
        state = await self._manager.ask("ask for its state", lambda _, manager: manager.SystemState)
        return str(state.decode())

    async def started_at(self) -> int:
        """Return when this manager started, in microseconds on the monotonic clock: scopes are never older than it."""
        return int(
            await self._manager.ask("ask when it started", lambda _, manager: manager.UserspaceTimestampMonotonic)
        )

    async def control_group(self) -> str:
        """Return the manager's own control group: the scopes are below it, with the controllers it delegates."""
        group = await self._manager.ask("ask for its control group", lambda _, manager: manager.ControlGroup)
        return str(group.decode())

    async def stop_unit_soon(self, unit: str) -> None:
        """Ask for the stop of *unit* and return without waiting: it may be our own."""
        await self._manager.ask(f"stop {unit}", lambda _, manager: manager.StopUnit(unit.encode(), b"replace"))

    async def stop_was_requested(self, unit: str) -> bool:
        """Tell whether somebody is stopping our own service *unit* for good; every doubt is False.

        See :func:`ccorchd.host.manager.stop_was_requested`.
        """
        return await stop_was_requested(unit)

    async def enabled_at_boot(self, unit: str) -> bool:
        """Tell whether the user unit *unit* is enabled."""
        try:
            state = await self._manager.ask(
                f"look up {unit}", lambda _, manager: manager.GetUnitFileState(unit.encode())
            )
        except CcorchError:
            return False
        return state in (b"enabled", b"enabled-runtime")

    async def enable_at_boot(self, unit: str) -> bool:
        """Enable the user unit *unit* and return whether that changed anything. Raise ``HostFailed`` without a file."""
        if await self.enabled_at_boot(unit):
            return False
        await self._manager.ask(
            f"enable {unit}", lambda _, manager: manager.EnableUnitFiles([unit.encode()], False, False)
        )
        return True

    async def linger(self) -> bool:
        """Tell whether our user manager starts at boot and outlives the last log-out."""
        try:
            [path] = await self._login1("GetUser", "u", os.getuid())
            return bool((await self._login1("Get", "ss", f"{_LOGIN1}.User", "Linger", path=path))[0])
        except CcorchError:
            # logind forgets a user whose manager was stopped; what it goes by at the next boot is this file.
            return await asyncio.to_thread((_LINGER / pwd.getpwuid(os.getuid()).pw_name).exists)

    async def enable_linger(self) -> None:
        """Let our user manager start at boot (``loginctl enable-linger`` of ourselves). Does nothing when it does.

        Raise ``HostFailed`` when logind does not let us: without polkit only root may (seen on systemd 257).
        """
        if await self.linger():
            return
        try:
            await self._login1("SetUserLinger", "ubb", os.getuid(), True, False)
        except CcorchError as error:
            user = pwd.getpwuid(os.getuid()).pw_name
            hint = f"Ask an administrator for: loginctl enable-linger {user}"
            raise CcorchError(error.code, error.message, hint) from error

    async def _login1(self, member: str, signature: str, *arguments: object, path: str = "") -> list[Any]:
        """Call logind's manager, or the properties of the object at *path*."""
        where = (path, "org.freedesktop.DBus.Properties") if path else (_LOGIN1_PATH, f"{_LOGIN1}.Manager")
        bus = await Bus.connect(system=True)
        try:
            return await bus.call(_LOGIN1, *where, member, signature, *arguments)
        except DBusCallError as error:
            raise CcorchError(ErrorCode.HOST_FAILED, f"logind refuses {member}: {error.text or error.name}") from error
        finally:
            await bus.close()

    # Signals

    async def _job_result(self, job: str, unit: str, timeout: float) -> str | None:
        """Return the job's result, "" when it ended unseen (the bus was lost), None when it outlasts *timeout*."""
        future = asyncio.get_running_loop().create_future()
        self._waiting[job] = future
        if job in self._finished:
            future.set_result(self._finished[job])
        deadline = time.monotonic() + timeout
        try:
            while True:
                left = deadline - time.monotonic()
                unheard = self._bus is None or self._bus.closed.is_set()
                await asyncio.wait({future}, timeout=max(min(left, 0.02 if unheard else 0.5), 0))
                if future.done():
                    return str(future.result())
                if left <= 0:
                    return None
                current = await self._manager.ask(
                    f"look at the job of {unit}",
                    lambda bus, _: property_of(bus, unit_path(unit), UNIT, "Job", "(uo)")[1],
                )
                if current != job.encode() and not future.done():
                    return ""
        finally:
            self._waiting.pop(job, None)

    def _job_removed(self, message: Message) -> None:
        _, job, _, result = message.body
        # The answer to the command can come after the end of the job it names: keep some results for it.
        self._finished[job] = result
        while len(self._finished) > 64:
            del self._finished[next(iter(self._finished))]
        if (future := self._waiting.get(job)) is not None and not future.done():
            future.set_result(result)

    def _unit_changed(self, message: Message) -> None:
        unit = self._ours(unit_name(message.path))
        if unit is None:
            return
        interface, changed, _ = plain(message.body)
        # The scope's own properties come before those of the unit (systemd, bus_unit_send_change_signal).
        if interface == SCOPE and "Result" in changed:
            self._results[unit] = changed["Result"]
        elif interface == UNIT and changed.get("ActiveState") in ("inactive", "failed"):
            self._gone(unit)
        elif interface == UNIT and changed.get("ActiveState") == "active":
            self._active.add(unit)

    def _unit_removed(self, message: Message) -> None:
        if (unit := self._ours(message.body[0])) is not None:
            self._gone(unit)

    def _owner_changed(self, message: Message) -> None:
        name, _, owner = message.body
        if name == NAME and owner:  # the manager has re-executed itself
            task = asyncio.get_running_loop().create_task(self._resume())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _resume(self) -> None:
        try:
            await self._subscribe()
        except CcorchError as error:
            _log.error("no signals from the user manager after its restart: %s", error)

    def _ours(self, unit: str) -> str | None:
        return unit if unit.startswith(f"{self._naming.stem}-") and unit.endswith(".scope") else None

    def _gone(self, unit: str) -> None:
        if unit not in self._active:
            return
        self._active.discard(unit)
        result = self._results.pop(unit, "success")
        for callback in self._callbacks:
            try:
                callback(unit, result)
            except Exception:
                _log.exception("a callback for the end of %s failed", unit)


def _lives_in(pid: int, unit: str) -> bool:
    """Tell whether *pid* is alive, no zombie, and in the cgroup of *unit*."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[0]
        groups = Path(f"/proc/{pid}/cgroup").read_text("utf-8", "replace").splitlines()
    except OSError:
        return False
    # v1 lines can stand beside ours; that of v2 begins with 0:: (cgroups(7)), that of a host without it names systemd.
    own = [line for line in groups if line.startswith("0::") or ":name=systemd:" in line]
    return state not in "ZX" and any(f"/{unit}" in line for line in own)

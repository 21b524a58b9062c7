# SPDX-License-Identifier: LGPL-2.1-or-later
"""The typed client of ccorchd's D-Bus API, shared by ccorchctl and the web dashboard; owner of dbus-next on this side.

Records come back as plain dictionaries with the keys of ``ccorchd.contract``; a key that is not known is absent. Each
method raises :class:`ccorchctl.failures.Failure` and nothing else, and none waits longer than its time-out.
"""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import os
import stat
import warnings
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, Final, Self

from ccorchctl.failures import NO_BUS, NOT_RUNNING, Failure, from_bus, not_running
from ccorchd.contract import (
    INSTANCE_INTERFACE,
    INSTANCE_PATH,
    MANAGER_INTERFACE,
    MANAGER_PATH,
    PROJECT_INTERFACE,
    ErrorCode,
    Naming,
)

with warnings.catch_warnings():
    # Its service half uses typing.no_type_check_decorator (deprecated in 3.13), and it imports gi where there is one.
    warnings.simplefilter("ignore")
    from dbus_next import BusType, Message, MessageFlag, MessageType, Variant
    from dbus_next.aio import MessageBus
    from dbus_next.errors import AuthError

Record = dict[str, Any]

SHORT: Final = 30.0
"""Seconds for calls that look something up; the first one may have to wait for the daemon's start."""
LONG: Final = 180.0
"""Seconds for calls that start, stop or merge something: set-up steps and a slow stop have their own limits."""

_BUS_NAME: Final = "org.freedesktop.DBus"
_BUS_PATH: Final = "/org/freedesktop/DBus"
_PROPERTIES: Final = "org.freedesktop.DBus.Properties"
_SYSTEMD: Final = "org.freedesktop.systemd1"
_SYSTEMD_PATH: Final = "/org/freedesktop/systemd1"
_UNITS: Final = f"{_SYSTEMD_PATH}/unit/"
_NOBODY: Final = frozenset({f"{_BUS_NAME}.Error.ServiceUnknown", f"{_BUS_NAME}.Error.NameHasNoOwner"})
_START_LOOK: Final = 0.4
"""Seconds between looks at a daemon that is being started; less than its unit's RestartSec."""
_OBJECT_MANAGER: Final = "org.freedesktop.DBus.ObjectManager"


def caller_environment(environment: Mapping[str, str], patterns: Iterable[str]) -> dict[str, str]:
    """Return what of the caller's *environment* matches *patterns* (fnmatch(3)), so that no token slips through.

    Values that are not UTF-8 are left out; D-Bus cannot carry them.
    """
    passed: dict[str, str] = {}
    for name, value in environment.items():
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            with contextlib.suppress(UnicodeEncodeError):
                value.encode()
                passed[name] = value
    return passed


def session_address(environment: Mapping[str, str]) -> str:
    """Return the session bus's address: the variable, else the socket of the user's own bus (systemd's place for it).

    Raises :class:`Failure` (NoBus) when there is neither. X11 autolaunch is not tried: no user manager is behind it.
    """
    if address := environment.get("DBUS_SESSION_BUS_ADDRESS", ""):
        return address
    runtime = environment.get("XDG_RUNTIME_DIR", "") or f"/run/user/{os.getuid()}"
    path = f"{runtime}/bus"
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(os.stat(path).st_mode):
            return f"unix:path={path}"
    raise _no_bus("there is no socket " + path)


def _no_bus(why: str) -> Failure:
    return Failure(
        NO_BUS,
        f"no session bus: {why}",
        "Log in properly (ssh or machinectl shell, not su or sudo), "
        "or set XDG_RUNTIME_DIR=/run/user/$(id -u) while 'loginctl enable-linger' is on.",
    )


class _QuietWriter:
    """The writer's socket, except that a full buffer counts as zero bytes written.

    dbus-next takes EAGAIN for a lost connection; with 0 it waits until the socket is writable again.
    """

    def __init__(self, sock: Any) -> None:
        self._sock = sock

    def send(self, data: Any) -> int:
        try:
            return int(self._sock.send(data))
        except BlockingIOError:
            return 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class _Bus(MessageBus):  # type: ignore[misc]  # dbus-next comes without types
    def _setup_socket(self) -> None:
        try:
            super()._setup_socket()
        except BaseException:
            _close_socket(self)  # nobody else would: the constructor is about to fail
            raise

    async def _auth_readline(self) -> str:
        # The library's own loops for ever, without yielding, when the other side hangs up.
        line = b""
        while not line.endswith(b"\r\n"):
            data = await self._loop.sock_recv(self._sock, 1)
            if not data:
                raise AuthError("the bus closed the connection")
            line += data
        return line[:-2].decode(errors="replace")


class Subscription:
    """Signals in order of arrival, as an asynchronous iterator of messages' ``(member, path, body)``.

    The iteration ends in a :class:`Failure` when the connection is lost. Use as an async context manager.
    """

    def __init__(self, client: Client, rules: Iterable[str], wanted: Callable[[Any], bool]) -> None:
        self._client = client
        self._rules = tuple(rules)
        self._wanted = wanted
        self._queue: asyncio.Queue[tuple[str, str, list[Any]]] = asyncio.Queue()

    async def __aenter__(self) -> Self:
        self._client._bus.add_message_handler(self._receive)
        for rule in self._rules:
            await self._client._bus_call("AddMatch", "s", rule)
        return self

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):
            self._client._bus.remove_message_handler(self._receive)
        for rule in self._rules:
            with contextlib.suppress(Failure):
                await self._client._bus_call("RemoveMatch", "s", rule)

    def _receive(self, message: Any) -> None:
        if message.message_type is MessageType.SIGNAL and self._wanted(message):
            self._queue.put_nowait((message.member, message.path or "", [plain(part) for part in message.body]))

    async def get(self) -> tuple[str, str, list[Any]]:
        """Return the next signal; raise :class:`Failure` if the bus goes away first."""
        getter = asyncio.ensure_future(self._queue.get())
        try:
            await asyncio.wait({getter, self._client._gone}, return_when=asyncio.FIRST_COMPLETED)
            if getter.done():
                return getter.result()
        finally:
            getter.cancel()
        raise from_bus("org.freedesktop.DBus.Error.Disconnected", "", self._client.naming)

    def __aiter__(self) -> AsyncIterator[tuple[str, str, list[Any]]]:
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[tuple[str, str, list[Any]]]:
        while True:
            yield await self.get()


class Client:
    """One connection to the bus and the daemon's methods on it. ``async with await Client.connect() as client``."""

    def __init__(self, bus: Any, naming: Naming, *, no_autostart: bool, timeout: float | None) -> None:
        self.naming = naming
        self._bus = bus
        self._flags = MessageFlag.NO_AUTOSTART if no_autostart else MessageFlag.NONE
        self._timeout = timeout
        self._gone: asyncio.Future[Any] = asyncio.ensure_future(_settle(bus))

    @classmethod
    async def connect(
        cls,
        naming: Naming | None = None,
        *,
        address: str | None = None,
        system: bool = False,
        no_autostart: bool = False,
        timeout: float | None = None,
    ) -> Self:
        """Connect to the session bus (or *address*).

        With *no_autostart* a call never starts the daemon by D-Bus activation. *timeout* (seconds) replaces the
        time-out of every call; None keeps each call's own. Raises :class:`Failure` when there is no bus.
        """
        naming = naming or Naming.from_environment()
        if address is None:
            address = "" if system else session_address(os.environ)
        bus = None
        try:
            bus = _Bus(bus_address=address or None, bus_type=BusType.SYSTEM if system else BusType.SESSION)
            bus._writer.sock = _QuietWriter(bus._writer.sock)
            await asyncio.wait_for(bus.connect(), 5 if timeout is None else timeout)
        except Exception as error:  # the library raises plain Exception, OSError, AuthError and its own address errors
            if bus is not None:
                _close_socket(bus)
            why = "it did not answer in time" if isinstance(error, TimeoutError) else _words(error)
            raise _no_bus(f"cannot connect to {address or 'the system bus'} ({why})") from error
        return cls(bus, naming, no_autostart=no_autostart, timeout=timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; safe to call twice."""
        if self._bus.connected:
            self._bus.disconnect()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._gone), 1)
        self._gone.cancel()
        await asyncio.gather(self._gone, return_exceptions=True)
        _close_socket(self._bus)

    # ---------------------------------------------------------------- calls

    async def _call(
        self, path: str, interface: str, member: str, signature: str = "", *body: Any, timeout: float = SHORT
    ) -> list[Any]:
        return await self._send(self.naming.bus_name, path, interface, member, signature, body, timeout)

    async def _bus_call(self, member: str, signature: str, *body: Any) -> list[Any]:
        return await self._send(_BUS_NAME, _BUS_PATH, _BUS_NAME, member, signature, body, SHORT)

    async def _send(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str,
        body: tuple[Any, ...],
        timeout: float,
    ) -> list[Any]:
        _check_text(body)
        if not self._bus.connected:  # a call on a dead connection would never return
            raise from_bus("org.freedesktop.DBus.Error.Disconnected", "", self.naming)
        message = Message(
            destination=destination,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=list(body),
            flags=self._flags,
        )
        try:
            reply = await asyncio.wait_for(self._reply(message), self._timeout or timeout)
        except TimeoutError:
            raise from_bus("org.freedesktop.DBus.Error.Timeout", "", self.naming, member=member) from None
        except (EOFError, OSError):
            reply = None
        if reply is None:
            raise from_bus("org.freedesktop.DBus.Error.Disconnected", "", self.naming)
        if reply.message_type is MessageType.ERROR:
            text = str(reply.body[0]) if reply.body else ""
            if self._flags is MessageFlag.NO_AUTOSTART and reply.error_name in _NOBODY and destination != _BUS_NAME:
                raise not_running(self.naming)
            raise from_bus(reply.error_name, text, self.naming, member=member)
        return [plain(part) for part in reply.body]

    async def _reply(self, message: Any) -> Any:
        """Return the reply to *message*. A daemon that cannot start never answers: then say so, and soon.

        The bus waits for its own long time-out, because it learns nothing of a unit that fails and is tried again.
        """
        if message.destination == _BUS_NAME or message.flags is MessageFlag.NO_AUTOSTART:
            return await self._bus.call(message)
        call = asyncio.ensure_future(self._bus.call(message))
        try:
            while not (await asyncio.wait({call}, timeout=_START_LOOK))[0]:
                if reason := await self._cannot_start():
                    unit = self.naming.daemon_unit
                    raise Failure(
                        NOT_RUNNING,
                        f"the daemon cannot start: {reason.rstrip('.')}",
                        f"systemctl --user status {unit}; journalctl --user -u {unit} -n 20",
                    )
            return call.result()
        finally:
            call.cancel()

    async def _cannot_start(self) -> str:
        """Return why the daemon's unit fails again and again, "" when it does not, or nobody can tell.

        Starts the unit where nobody does: after a start that failed the bus takes it for being started, for minutes.
        """
        path = _UNITS + "".join(c if c.isalnum() else f"_{ord(c):02x}" for c in self.naming.daemon_unit)

        async def ask(destination: str, path: str, interface: str, member: str, *body: str) -> Any:
            question = Message(
                destination=destination,
                path=path,
                interface=interface,
                member=member,
                signature="s" * len(body),
                body=list(body),
                flags=MessageFlag.NO_AUTOSTART,
            )
            answer = await asyncio.wait_for(self._bus.call(question), _START_LOOK)
            good = answer is not None and answer.message_type is MessageType.METHOD_RETURN
            return plain(answer.body[0]) if good else None

        try:
            if await ask(_BUS_NAME, _BUS_PATH, _BUS_NAME, "NameHasOwner", self.naming.bus_name) is not False:
                return ""
            service = await ask(_SYSTEMD, path, _PROPERTIES, "GetAll", "org.freedesktop.systemd1.Service")
            state = await ask(_SYSTEMD, path, _PROPERTIES, "Get", "org.freedesktop.systemd1.Unit", "SubState")
            if state == "dead":
                await ask(_SYSTEMD, _SYSTEMD_PATH, f"{_SYSTEMD}.Manager", "StartUnit", self.naming.daemon_unit, "fail")
        except (TimeoutError, EOFError, OSError):
            return ""
        if not service or state not in ("auto-restart", "failed") or service.get("Result") == "success":
            return ""
        return str(service.get("StatusText") or f"its unit failed ({service['Result']})")

    async def _manager(self, member: str, signature: str = "", *body: Any, timeout: float = SHORT) -> Any:
        reply = await self._call(MANAGER_PATH, MANAGER_INTERFACE, member, signature, *body, timeout=timeout)
        return reply[0] if reply else None

    async def _instance(self, path: str, member: str, signature: str = "", *body: Any, timeout: float = SHORT) -> Any:
        reply = await self._call(path, INSTANCE_INTERFACE, member, signature, *body, timeout=timeout)
        return reply[0] if reply else None

    # ---------------------------------------------------------------- Manager

    async def running(self) -> bool:
        """True when the daemon is on the bus now. Never starts it."""
        return bool((await self._bus_call("NameHasOwner", "s", self.naming.bus_name))[0])

    async def properties(self) -> Record:
        """Return ``Version``, ``ApiVersion`` and ``Suffix`` of the daemon."""
        reply = await self._call(MANAGER_PATH, _PROPERTIES, "GetAll", "s", MANAGER_INTERFACE)
        return dict(reply[0])

    async def status(self) -> Record:
        return dict(await self._manager("GetStatus"))

    async def register_project(self, repository: str, name: str = "") -> str:
        """Return the object path of the new project. *name* "" takes the folder's."""
        options = {"name": Variant("s", name)} if name else {}
        return str(await self._manager("RegisterProject", "sa{sv}", repository, options))

    async def projects(self) -> list[Record]:
        return list(await self._manager("ListProjects"))

    async def project(self, name: str) -> Record:
        """Return the record of one project; the daemon's ``NoSuchProject`` names the nearest."""
        path = str(await self._manager("GetProject", "s", name))
        for record in await self.projects():
            if record.get("object") == path:
                return record
        raise Failure(ErrorCode.NO_SUCH_PROJECT, f"Project {name} was removed a moment ago")

    async def find_project(self, path: str) -> Record | None:
        """Return the project *path* belongs to, with ``instance`` when it lies in an instance's worktree; else None."""
        try:
            record = await self._manager("FindProject", "s", path)
        except Failure as failure:
            if failure.code in (ErrorCode.NO_SUCH_PROJECT, ErrorCode.NOT_A_REPOSITORY, ErrorCode.NO_COMMITS):
                return None
            raise
        return dict(record) or None

    async def environment(self) -> dict[str, str]:
        """Return of this process' environment what the daemon takes for agents (its property CallerVariables)."""
        return caller_environment(os.environ, (await self.properties()).get("CallerVariables", []))

    async def create_instance(
        self,
        project: str,
        name: str = "",
        *,
        agent: str = "",
        prompt: str = "",
        base: str = "",
        branch: str = "",
        limits: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
        variables: Mapping[str, str] | None = None,
        options: Mapping[str, str] | None = None,
        start: bool = True,
    ) -> str:
        """Return the object path of the new instance. "" and None leave a choice to the daemon."""
        given: dict[str, Any] = {"start": Variant("b", start)}
        for key, text in (("agent", agent), ("prompt", prompt), ("base", base), ("branch", branch)):
            if text:
                given[key] = Variant("s", text)
        for key, table in (
            ("limits", limits),
            ("environment", environment),
            ("variables", variables),
            ("options", options),
        ):
            if table:
                given[key] = Variant("a{ss}", dict(table))
        return str(await self._manager("CreateInstance", "ssa{sv}", project, name, given, timeout=LONG))

    async def instances(self, *, project: str = "", states: Iterable[str] = ()) -> list[Record]:
        wanted: dict[str, Any] = {}
        if project:
            wanted["project"] = Variant("s", project)
        if states := list(states):
            wanted["states"] = Variant("as", states)
        return list(await self._manager("ListInstances", "a{sv}", wanted))

    async def instance(self, address: str) -> str:
        """Return the object path of ``project/name``."""
        return str(await self._manager("GetInstance", "s", address))

    async def worktrees(self, project: str = "") -> list[Record]:
        return list(await self._manager("ListWorktrees", "s", project))

    async def events(
        self,
        *,
        instance: str = "",
        project: str = "",
        kinds: Iterable[str] = (),
        after: int = 0,
        limit: int = 1000,
        newest: bool = False,
        audit: bool = False,
    ) -> list[Record]:
        """Return event records, oldest first. *after* is the id of one; *newest* takes the last *limit* of them."""
        wanted: dict[str, Any] = {"limit": Variant("u", limit), "newest": Variant("b", newest)}
        if instance:
            wanted["instance"] = Variant("s", instance)
        if project:
            wanted["project"] = Variant("s", project)
        if kinds := list(kinds):
            wanted["kinds"] = Variant("as", kinds)
        if after:
            wanted["after"] = Variant("t", after)
        if audit:
            wanted["audit"] = Variant("b", True)
        rows = await self._manager("ListEvents", "a{sv}", wanted)
        return sorted(rows, key=lambda row: int(row["id"]))

    async def doctor(self) -> list[Record]:
        return list(await self._manager("Doctor", timeout=60))

    async def settings(self) -> list[Record]:
        return list(await self._manager("GetSettings"))

    async def prepare_host(self) -> list[str]:
        """Turn on what a reboot and a log-out need; return a sentence for each thing that was changed."""
        return list(await self._manager("PrepareHost", timeout=60))

    async def reload(self) -> None:
        await self._manager("Reload")

    async def shutdown(self) -> None:
        """Stop all instances, then the daemon."""
        await self._manager("Shutdown", timeout=LONG)

    async def set_secret(self, name: str, value: str) -> None:
        await self._manager("SetSecret", "ss", name, value)

    async def remove_secret(self, name: str) -> None:
        await self._manager("RemoveSecret", "s", name)

    async def secrets(self) -> list[str]:
        return list(await self._manager("ListSecrets"))

    # ---------------------------------------------------------------- Project (by object path)

    async def agree_setup(self, project: str, digest: str) -> None:
        """Agree to the set-up steps whose hash is *digest*; refused when they are others by now."""
        await self._call(project, PROJECT_INTERFACE, "AgreeSetup", "s", digest)

    async def remove_project(self, project: str) -> None:
        await self._call(project, PROJECT_INTERFACE, "Remove", "a{sv}", {}, timeout=LONG)

    # ---------------------------------------------------------------- Instance (by object path)

    async def describe(self, instance: str) -> Record:
        """Return the full record, usage included."""
        return dict(await self._instance(instance, "Describe"))

    async def start(self, instance: str, *, environment: Mapping[str, str] | None = None, prompt: str = "") -> None:
        options: dict[str, Any] = {}
        if environment:
            options["environment"] = Variant("a{ss}", dict(environment))
        if prompt:
            options["prompt"] = Variant("s", prompt)
        await self._instance(instance, "Start", "a{sv}", options, timeout=LONG)

    async def stop(self, instance: str) -> None:
        await self._instance(instance, "Stop", "a{sv}", {}, timeout=LONG)

    async def restart(self, instance: str, *, environment: Mapping[str, str] | None = None) -> None:
        options = {"environment": Variant("a{ss}", dict(environment))} if environment else {}
        await self._instance(instance, "Restart", "a{sv}", options, timeout=LONG)

    async def remove(self, instance: str, *, force: bool = False) -> Record:
        """Return ``branch``, ``branch_deleted`` and ``kept_ref`` (where forced-away work still is)."""
        return dict(await self._instance(instance, "Remove", "a{sv}", {"force": Variant("b", force)}, timeout=LONG))

    async def send(self, instance: str, text: str) -> bool:
        """Deliver a prompt; return whether the agent has taken it (False: it waits behind the turn the agent is in)."""
        return bool(await self._instance(instance, "Send", "sa{sv}", text, {}, timeout=LONG))

    async def interrupt(self, instance: str) -> None:
        await self._instance(instance, "Interrupt")

    async def attach(
        self, instance: str, *, read_only: bool = False, window: str = ""
    ) -> tuple[list[str], dict[str, str]]:
        """Return the command line to run on the caller's terminal, and variables to set for it."""
        reply = await self._call(instance, INSTANCE_INTERFACE, "Attach", "bs", read_only, window)
        return list(reply[0]), dict(reply[1])

    async def detach(self, instance: str) -> int:
        """Return how many terminals were detached."""
        return int(await self._instance(instance, "Detach"))

    async def screen(self, instance: str) -> str:
        return str(await self._instance(instance, "Screen"))

    async def diff(self, instance: str, *, stat: bool = False) -> str:
        return str(await self._instance(instance, "Diff", "a{sv}", {"stat": Variant("b", stat)}, timeout=60))

    async def commits(self, instance: str) -> list[tuple[str, str]]:
        """Return ``(commit id, subject)`` of the branch's own commits."""
        return [(row[0], row[1]) for row in await self._instance(instance, "Commits", timeout=60)]

    async def merge(self, instance: str) -> str:
        """Merge the branch into the main checkout's; return the commit it is at then."""
        return str(await self._instance(instance, "Merge", timeout=LONG))

    # ---------------------------------------------------------------- signals

    def follow_events(self) -> Subscription:
        """``EventAdded`` signals (body: one event record), and ``NameOwnerChanged`` when the daemon comes or goes."""
        rule = f"type='signal',sender='{self.naming.bus_name}',interface='{MANAGER_INTERFACE}',member='EventAdded'"
        return Subscription(
            self,
            (rule, self._owner_rule()),
            lambda m: (m.interface == MANAGER_INTERFACE and m.member == "EventAdded") or self._is_owner_change(m),
        )

    def follow_instances(self) -> Subscription:
        """Property changes of instances, objects coming and going, and the daemon's own coming and going."""
        name = self.naming.bus_name
        rules = (
            f"type='signal',sender='{name}',interface='{_PROPERTIES}',path_namespace='{INSTANCE_PATH}'",
            f"type='signal',sender='{name}',interface='{_OBJECT_MANAGER}'",
            self._owner_rule(),
        )
        return Subscription(
            self,
            rules,
            lambda m: (
                (m.interface == _PROPERTIES and (m.path or "").startswith(INSTANCE_PATH + "/"))
                or m.interface == _OBJECT_MANAGER
                or self._is_owner_change(m)
            ),
        )

    def _owner_rule(self) -> str:
        return (
            f"type='signal',sender='{_BUS_NAME}',interface='{_BUS_NAME}',member='NameOwnerChanged',"
            f"arg0='{self.naming.bus_name}'"
        )

    def _is_owner_change(self, message: Any) -> bool:
        return (
            message.member == "NameOwnerChanged"
            and message.sender == _BUS_NAME
            and bool(message.body)
            and message.body[0] == self.naming.bus_name
        )


async def _settle(bus: Any) -> None:
    """Return when the connection is gone, however it went."""
    with contextlib.suppress(Exception):
        await bus.wait_for_disconnect()


def _close_socket(bus: Any) -> None:
    # dbus-next never closes its file descriptor, nor the file object around it.
    with contextlib.suppress(Exception):
        bus._loop.remove_reader(bus._fd)
        bus._loop.remove_writer(bus._fd)
    for thing in (getattr(bus, "_stream", None), getattr(bus, "_sock", None)):
        with contextlib.suppress(Exception):
            if thing is not None:
                thing.close()


def _words(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _check_text(value: Any) -> None:
    """Raise ``InvalidArgument`` for strings that would make the bus drop the connection: NUL, or not Unicode."""
    match value:
        case str():
            if "\0" in value:
                raise Failure(ErrorCode.INVALID_ARGUMENT, "a text with a NUL character cannot be sent")
            try:
                value.encode()
            except UnicodeEncodeError:
                raise Failure(
                    ErrorCode.INVALID_ARGUMENT,
                    "a text that is not valid UTF-8 cannot be sent",
                    "Convert it with iconv(1).",
                ) from None
        case Variant():
            _check_text(value.value)
        case dict():
            for key, item in value.items():
                _check_text(key)
                _check_text(item)
        case list() | tuple():
            for item in value:
                _check_text(item)


def plain(value: Any) -> Any:
    """Return *value* with every Variant replaced by what it holds."""
    match value:
        case Variant():
            return plain(value.value)
        case dict():
            return {plain(key): plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
    return value

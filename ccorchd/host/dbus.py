# SPDX-License-Identifier: LGPL-2.1-or-later
"""The D-Bus connection of the daemon. The only module of ccorchd that knows dbus-next.

dbus-next 0.2.3 is unmaintained, and what its users need to know is put right here and nowhere else: a full socket
buffer ended the connection, a call after a disconnect hung for ever, an exception in a handler sent its traceback to
the client, a NUL in a string made the bus drop us, and a bus that hung up during authentication made a busy loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol, TypeVar

from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError

with warnings.catch_warnings():
    # It uses typing.no_type_check_decorator, which Python 3.13 deprecates, and imports gi where there is one.
    warnings.simplefilter("ignore")
    import dbus_next.service
    from dbus_next.aio.message_bus import MessageBus
    from dbus_next.constants import BusType, ErrorType, MessageFlag, MessageType, PropertyAccess
    from dbus_next.errors import AuthError, DBusError
    from dbus_next.introspection import Node
    from dbus_next.message import Message
    from dbus_next.service import ServiceInterface
    from dbus_next.signature import Variant

_UntypedMessageBus: Any = MessageBus
_untyped_service: Any = dbus_next.service

_Function = TypeVar("_Function", bound=Callable[..., Any])


class _Decorator(Protocol):
    def __call__(self, name: str | None = None, disabled: bool = False) -> Callable[[_Function], _Function]: ...


class _PropertyDecorator(Protocol):
    def __call__(
        self, access: PropertyAccess = ..., name: str | None = None, disabled: bool = False
    ) -> Callable[[Callable[..., Any]], Any]: ...


method: _Decorator = _untyped_service.method
signal: _Decorator = _untyped_service.signal
dbus_property: _PropertyDecorator = _untyped_service.dbus_property

__all__ = [
    "Bus",
    "DBusCallError",
    "DBusError",
    "Message",
    "MessageFlag",
    "MessageType",
    "PropertyAccess",
    "ServiceInterface",
    "Subscription",
    "Variant",
    "dbus_property",
    "method",
    "plain",
    "session_address",
    "signal",
    "variants",
]

_Service: Any = ServiceInterface
"""The same without types: what this module needs of it is private and untyped."""

_log: Final = logging.getLogger(__name__)

_DAEMON: Final = "org.freedesktop.DBus"
_DAEMON_PATH: Final = "/org/freedesktop/DBus"

_DO_NOT_QUEUE: Final = 4
_PRIMARY_OWNER: Final = 1
_ALREADY_OWNER: Final = 4


class DBusCallError(Exception):
    """A peer answered a call with an error. *name* is the D-Bus error name, *text* what it said, maybe nothing."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}" if text else name)
        self.name = name
        self.text = text


def session_address() -> str:
    """Return the address of the session bus: the variable's, else systemd's user bus (``$XDG_RUNTIME_DIR/bus``)."""
    if address := os.environ.get("DBUS_SESSION_BUS_ADDRESS", ""):
        return address
    return f"unix:path={os.environ.get('XDG_RUNTIME_DIR', '') or f'/run/user/{os.getuid()}'}/bus"


def plain(value: Any) -> Any:
    """Return *value* with each Variant in it, at any depth, replaced by what it holds."""
    if isinstance(value, Variant):
        return plain(value.value)
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def variants(fields: Mapping[str, str], record: Mapping[str, object]) -> dict[str, Variant]:
    """Return *record* as ``a{sv}``, with the signature of each key from *fields* (one of ``contract.*_FIELDS``).

    A key whose value is None is left out. Raise KeyError for a key that *fields* lacks: such a record breaks the API.
    """
    known = ((key, value) for key, value in record.items() if value is not None)
    return {key: Variant(fields[key], _shaped(fields[key], value)) for key, value in known}


def _shaped(signature: str, value: Any) -> Any:
    """Turn what Python makes easy (tuples, enums, ints for floats) into what the marshaller takes."""
    if signature in ("s", "o", "g"):
        return str(value)
    if signature == "d":
        return float(value)
    if signature == "b":
        return bool(value)
    if len(signature) == 1:
        return value if signature == "v" else int(value)
    if signature.startswith("a{"):
        return {_shaped(signature[2], key): _shaped(signature[3:-1], item) for key, item in dict(value).items()}
    if signature.startswith("a"):
        return [_shaped(signature[1:], item) for item in value]
    return list(value)


def _sendable(value: Any) -> Any:
    """Return *value* with every string made valid for D-Bus: UTF-8 without NUL.

    The bus disconnects whoever sends anything else, and the text of agents, files and errors is not ours to trust.
    """
    if isinstance(value, str):
        if "\0" in value:
            value = value.replace("\0", "\N{REPLACEMENT CHARACTER}")
        return value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, Variant):
        value.value = _sendable(value.value)
        return value
    if isinstance(value, list):
        return [_sendable(item) for item in value]
    if isinstance(value, dict):
        return {_sendable(key): _sendable(item) for key, item in value.items()}
    return value


class _PatientSocket:
    """The writer's view of the socket: a full buffer means "nothing sent yet", not the end of the connection."""

    def __init__(self, inner: socket.socket) -> None:
        self._inner = inner

    def send(self, data: memoryview) -> int:
        try:
            return self._inner.send(data)
        except (BlockingIOError, InterruptedError):
            return 0


class _MessageBus(_UntypedMessageBus):  # type: ignore[misc]  # what types dbus-next has are wrong
    """dbus-next's connection with its faults put right (see the module's docstring)."""

    def __init__(self, address: str | None, bus_type: BusType, on_closed: Callable[[], None]) -> None:
        self._on_closed = on_closed
        super().__init__(bus_address=address, bus_type=bus_type)
        self._writer.sock = _PatientSocket(self._sock)

    def _setup_socket(self) -> None:
        try:
            super()._setup_socket()
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Close the socket, which dbus-next leaves to the garbage collector."""
        for name in ("_stream", "_sock"):
            if (handle := getattr(self, name, None)) is not None:
                with contextlib.suppress(OSError):  # flushing a stream whose peer is gone
                    handle.close()

    async def _auth_readline(self) -> str:
        line = b""
        while not line.endswith(b"\r\n"):
            # Single bytes: what follows the last line belongs to the buffered stream.
            byte = await self._loop.sock_recv(self._sock, 1)
            if not byte:
                raise AuthError("the bus hung up during authentication")
            line += byte
        return line[:-2].decode("ascii", "replace")

    def _finalize(self, err: Exception | None = None) -> None:
        super()._finalize(err)
        if self._disconnect_future.done() and not self._disconnect_future.cancelled():
            self._disconnect_future.exception()  # seen: no "never retrieved" at exit
        self._on_closed()

    def send(self, msg: Message) -> asyncio.Future[None]:
        if msg.message_type == MessageType.ERROR:
            self._hide_traceback(msg)
        msg.body = _sendable(msg.body)
        if self._disconnected:
            # dbus-next would watch a descriptor that is closed, or that is somebody else's by now: with a call that
            # outlives its connection the loop spins, or the next connection loses its writer.
            late: asyncio.Future[None] = self._loop.create_future()
            late.set_result(None)
            return late
        future: asyncio.Future[None] = super().send(msg)
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        return future

    @staticmethod
    def _hide_traceback(msg: Message) -> None:
        internal = (ErrorType.SERVICE_ERROR.value, ErrorType.INTERNAL_ERROR.value)
        if msg.error_name in internal and msg.body and "File " in str(msg.body[0]):
            _log.error("a D-Bus handler failed: %s", msg.body[0])
            msg.body = ["An internal error occurred; the journal of ccorchd has the details."]

    def _make_method_handler(self, interface: Any, method: Any) -> Callable[[Message, Any], None]:
        if not asyncio.iscoroutinefunction(method.fn):
            handler: Callable[[Message, Any], None] = super()._make_method_handler(interface, method)
            return handler

        # dbus-next's own sends the answer and then raises the error once more, into the event loop's log.
        def handle(msg: Message, send_reply: Any) -> None:
            task = asyncio.ensure_future(method.fn(interface, *_Service._msg_body_to_args(msg)))
            task.add_done_callback(lambda done: self._reply(done, msg, method, send_reply))

        return handle

    @staticmethod
    def _reply(done: asyncio.Future[Any], msg: Message, method: Any, send_reply: Any) -> None:
        if done.cancelled():
            send_reply(Message.new_error(msg, str(ErrorType.NO_REPLY.value), "The call was cancelled."))
            return
        error = done.exception()
        if error is None:
            body, fds = _Service._fn_result_to_body(done.result(), method.out_signature_tree)
            send_reply(Message.new_method_return(msg, method.out_signature, body, fds))
        else:
            send_reply.send_error(error)

    def _introspect_export_path(self, path: str) -> Node:
        # dbus-next splits anywhere in the string, so that …/i10 became a child named "0" of …/i1.
        node = Node.default(path) if path in self._path_exports else Node(path)
        for interface in self._path_exports.get(path, []):
            node.interfaces.append(interface.introspect())
        stem = path.rstrip("/") + "/"
        children = {export[len(stem) :].split("/")[0] for export in self._path_exports if export.startswith(stem)}
        node.nodes = [Node(name) for name in sorted(children) if name]
        return node


class Subscription:
    """A callback for signals; :meth:`cancel` ends it, also from inside the callback."""

    def __init__(self, bus: Bus, rule: str, wanted: Mapping[str, str], namespace: str, callback: _Callback) -> None:
        self._bus = bus
        self.rule = rule
        self._wanted = wanted
        self._namespace = namespace
        self._callback = callback
        self.active = True

    def _matches(self, message: Message, owners: Mapping[str, str]) -> bool:
        for key, value in self._wanted.items():
            if key == "sender":
                if message.sender != value and message.sender != owners.get(value):
                    return False
            elif getattr(message, key) != value:
                return False
        path = message.path or ""
        return not self._namespace or path == self._namespace or path.startswith(self._namespace.rstrip("/") + "/")

    def _deliver(self, message: Message, owners: Mapping[str, str]) -> None:
        if not self.active or not self._matches(message, owners):
            return
        try:
            self._callback(message)
        except Exception:
            _log.exception("a callback for the signal %s failed", message.member)

    def cancel(self) -> None:
        """Stop the callback and take the match rule back. Does nothing the second time."""
        if self.active:
            self.active = False
            self._bus._unsubscribe(self)


_Callback = Callable[[Message], None]


class Bus:
    """One connection to a message bus. Made by :meth:`connect`; there is no reconnect: when :attr:`closed` is set, make
    another.
    """

    def __init__(self, what: str) -> None:
        """Use :meth:`connect`. *what* names the bus in sentences for people."""
        self.closed = asyncio.Event()
        self.raw: Any
        """dbus-next's own ``MessageBus``."""
        self._what = what
        self._pending: dict[int, asyncio.Future[Message]] = {}
        self._unanswered: dict[int, str] = {}
        self._rules: dict[str, int] = {}
        self._subscriptions: list[Subscription] = []
        self._owners: dict[str, str] = {}

    @classmethod
    async def connect(cls, address: str | None = None, *, system: bool = False, timeout: float = 5) -> Bus:
        """Connect to the session bus, to the system bus, or to *address*; wait at most *timeout* seconds.

        Raise ``HostFailed`` when there is no such bus, it refuses, or it does not answer.
        """
        bus = cls("system bus" if system else "session bus" if address is None else f"bus {address}")
        if address is None and not system:
            address = session_address()
        raw = None
        try:
            raw = _MessageBus(address, BusType.SYSTEM if system else BusType.SESSION, bus._lost)
            bus.raw = raw
            raw.add_message_handler(bus._received)
            async with asyncio.timeout(timeout):
                await raw.connect()
        except BaseException as error:
            if raw is not None:
                raw._finalize(None)
                raw.release()
            if not isinstance(error, Exception):
                raise
            why = "it did not answer" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
            raise CcorchError(
                ErrorCode.HOST_FAILED,
                f"No connection to the {bus._what}: {why}",
                "" if address is None else f"The address tried was {address}.",
            ) from error
        return bus

    @property
    def unique_name(self) -> str:
        """Our name on the bus, for example ``:1.42``."""
        return str(self.raw.unique_name)

    async def close(self) -> None:
        """Close the connection. Calls that wait for an answer raise ``HostFailed``."""
        if not self.closed.is_set():
            self.raw.disconnect()
            self.raw._finalize(None)
        self.raw.release()

    def _lost(self) -> None:
        self.closed.set()
        for future in self._pending.values():
            if not future.done():
                future.set_exception(self._gone())
        self._pending.clear()
        self._unanswered.clear()

    def _gone(self) -> CcorchError:
        return CcorchError(ErrorCode.HOST_FAILED, f"The connection to the {self._what} is lost")

    # Calls

    async def call(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        *arguments: Any,
        timeout: float = 10,
    ) -> list[Any]:
        """Call a method and return the body of its answer, Variants unwrapped.

        Arguments that are variants must be :class:`Variant`. Raise :class:`DBusCallError` when the peer answers with an
        error, ``Timeout`` after *timeout* seconds without an answer, ``HostFailed`` when the connection is lost.
        """
        message = Message(destination, path, interface, member, signature=signature, body=list(arguments))
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        serial = self._send(message)
        self._pending[serial] = future
        try:
            async with asyncio.timeout(timeout):
                reply = await future
        except TimeoutError:
            raise CcorchError(
                ErrorCode.TIMEOUT, f"{destination} did not answer {member} within {timeout:g} seconds"
            ) from None
        finally:
            self._pending.pop(serial, None)
        if reply.message_type == MessageType.ERROR:
            text = reply.body[0] if reply.body and isinstance(reply.body[0], str) else ""
            raise DBusCallError(reply.error_name, text)
        body: list[Any] = plain(reply.body)
        return body

    def emit(self, path: str, interface: str, member: str, signature: str = "", *arguments: Any) -> None:
        """Send a signal. Does nothing once the connection is lost: nobody is there to hear it."""
        if not self.closed.is_set():
            self.raw.send(Message.new_signal(path, interface, member, signature, list(arguments)))

    def _send(self, message: Message) -> int:
        """Send at once and return the serial, so that calls reach the bus in the order in which they were made."""
        if self.closed.is_set():
            raise self._gone()
        serial: int = self.raw.next_serial()
        message.serial = serial
        self.raw.send(message)
        return serial

    def _received(self, message: Message) -> bool:
        if message.message_type == MessageType.SIGNAL:
            self._note_owner(message)
            for subscription in tuple(self._subscriptions):
                subscription._deliver(message, self._owners)
        elif message.message_type in (MessageType.METHOD_RETURN, MessageType.ERROR):
            if (future := self._pending.pop(message.reply_serial, None)) is not None:
                if not future.done():
                    future.set_result(message)
                return True
            if (what := self._unanswered.pop(message.reply_serial, None)) is not None:
                self._house_reply(what, message)
                return True
        return False

    # Signals

    def on_signal(
        self,
        *,
        sender: str | None = None,
        path: str | None = None,
        path_namespace: str | None = None,
        interface: str | None = None,
        member: str | None = None,
        callback: Callable[[Message], None],
    ) -> Subscription:
        """Call *callback* with each signal that fits; an exception in it is logged and goes no further.

        The rule is in force for everything that answers to a call made after this one. ``message.body`` holds Variants:
        see :func:`plain`. A well-known *sender* is followed from owner to owner.
        """
        wanted = {"sender": sender, "path": path, "interface": interface, "member": member}
        given = {key: value for key, value in wanted.items() if value is not None}
        terms = {"type": "signal", **given}
        if path_namespace is not None:
            terms["path_namespace"] = path_namespace
        rule = ",".join(f"{key}='{value}'" for key, value in terms.items())
        if sender is not None and not sender.startswith(":") and sender != _DAEMON:
            self._follow(sender)
        subscription = Subscription(self, rule, given, path_namespace or "", callback)
        self._match(rule)
        self._subscriptions.append(subscription)
        return subscription

    def _match(self, rule: str) -> None:
        self._rules[rule] = self._rules.get(rule, 0) + 1
        if self._rules[rule] == 1:
            self._house_call("AddMatch", rule)

    def _unsubscribe(self, subscription: Subscription) -> None:
        self._subscriptions.remove(subscription)
        self._rules[subscription.rule] -= 1
        if not self._rules[subscription.rule]:
            del self._rules[subscription.rule]
            if not self.closed.is_set():
                self._house_call("RemoveMatch", subscription.rule)

    def _follow(self, name: str) -> None:
        """Know the unique name behind *name* from now on: signals carry nothing but that."""
        rule = f"type='signal',sender='{_DAEMON}',interface='{_DAEMON}',member='NameOwnerChanged',arg0='{name}'"
        if rule not in self._rules:
            self._match(rule)
            self._house_call("GetNameOwner", name)

    def _house_call(self, member: str, argument: str) -> None:
        message = Message(_DAEMON, _DAEMON_PATH, _DAEMON, member, signature="s", body=[argument])
        self._unanswered[self._send(message)] = f"{member} {argument}"

    def _house_reply(self, what: str, message: Message) -> None:
        member, _, argument = what.partition(" ")
        if message.message_type == MessageType.ERROR:
            if member != "GetNameOwner":  # a name that nobody owns yet is no fault
                _log.error("the %s refused %s: %s", self._what, what, message.body)
        elif member == "GetNameOwner":
            self._owners[argument] = message.body[0]

    def _note_owner(self, message: Message) -> None:
        if message.sender == _DAEMON and message.member == "NameOwnerChanged" and message.interface == _DAEMON:
            name, _, owner = message.body
            if owner:
                self._owners[name] = owner
            else:
                self._owners.pop(name, None)

    # Names and objects

    async def request_name(self, name: str) -> None:
        """Own *name*. Raise ``HostFailed`` when another process owns it, or the bus does not let us."""
        try:
            [result] = await self.call(_DAEMON, _DAEMON_PATH, _DAEMON, "RequestName", "su", name, _DO_NOT_QUEUE)
        except DBusCallError as error:
            raise CcorchError(ErrorCode.HOST_FAILED, f"The {self._what} refuses us {name}: {error.text}") from error
        if result not in (_PRIMARY_OWNER, _ALREADY_OWNER):
            raise CcorchError(
                ErrorCode.HOST_FAILED,
                f"Another process owns {name} on the {self._what}",
                "Another ccorchd runs already; give this one a suffix (CCORCH_SUFFIX) or stop the other.",
            )

    async def release_name(self, name: str) -> None:
        """Give *name* back. Does nothing when we don't own it."""
        await self.call(_DAEMON, _DAEMON_PATH, _DAEMON, "ReleaseName", "s", name)

    def export(self, path: str, interface: ServiceInterface) -> None:
        """Show *interface* at *path*; clients get ``InterfacesAdded``. Raise ValueError if one of its name is there."""
        self.raw.export(path, interface)

    def unexport(self, path: str) -> None:
        """Take all interfaces away from *path*; clients get ``InterfacesRemoved``."""
        self.raw.unexport(path)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Take the reports of one instance's hook helpers: a seqpacket socket, and a spool folder for when nobody listened.

The socket itself says which instance reports. A helper gets its answer only after the handler is done, which commits;
without an answer it spools. So each report arrives at least once, and the handler drops the uids it knows.
The wire format is described in ``ccorchd/agents/hook.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import re
import socket as sockets
import stat
import struct
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError
from ccorchd.host import inotify
from ccorchd.model import Report

_log = logging.getLogger(__name__)

Handler = Callable[[Report], Awaitable[dict[str, object]]]

MESSAGE_LIMIT: Final = 160 * 1024
"""Largest message in bytes; helpers send at most 128 KiB and spool the rest."""
_ANSWER_LIMIT: Final = 160 * 1024
_FILE_LIMIT: Final = 64 * 1024 * 1024
_BAD_FILES: Final = 20
_IDLE_SECONDS: Final = 10.0
_CLOSE_SECONDS: Final = 2.0
_BURST_SECONDS: Final = 10.0
_RETRY_SECONDS: Final = (0.5, 60.0)
_RESCAN_SECONDS: Final = 5.0

_UID: Final = re.compile(r"[0-9a-f]{8,64}\Z")
_MARKERS: Final = re.compile(rb"\x00|\\u(?:0000|[dD][89a-fA-F])")
_UNFIT: Final = re.compile("[\0\ud800-\udfff]")


class _Malformed(ValueError):
    """A message that no later try will make better."""


def _fit(value: Any) -> Any:
    """Return *value* with NUL and lone surrogates replaced: JSON can spell them, D-Bus strings and UTF-8 cannot."""
    if isinstance(value, str):
        return _UNFIT.sub("\ufffd", value)
    if isinstance(value, list):
        return [_fit(item) for item in value]
    if isinstance(value, dict):
        return {_fit(key): _fit(item) for key, item in value.items()}
    return value


def _decode(data: bytes) -> dict[str, Any]:
    try:
        message = json.loads(data.decode("utf-8", "replace"), strict=False)
        if _MARKERS.search(data):
            message = _fit(message)
    except (ValueError, RecursionError) as error:
        raise _Malformed(f"no JSON: {error}") from None
    if not isinstance(message, dict):
        raise _Malformed("no JSON object")
    uid = message.get("id")
    if not isinstance(uid, str) or not _UID.match(uid):
        raise _Malformed("no id")
    return message


def _report(instance_id: int, message: dict[str, Any]) -> Report:
    event, when, payload = message.get("event"), message.get("time"), message.get("payload", {})
    if not isinstance(event, str) or not 0 < len(event) <= 64:
        raise _Malformed("no event")
    if isinstance(when, bool) or not isinstance(when, int | float) or not math.isfinite(when):
        raise _Malformed("no time")
    if not isinstance(payload, dict):
        raise _Malformed("a payload that is no object")
    return Report(uid=message["id"], instance_id=instance_id, event=event, payload=payload, time=float(when))


class ReportServer:
    """The event socket and the spool of one instance.

    *handler* is awaited for each report and must have committed it when it returns; its dict travels back to the helper
    (``output`` is printed for the agent, ``secret`` for whoever asked). It may take as long as it wants, is called for
    several reports at once, and must drop uids that it has seen. When it raises, the helper spools the report and the
    spool is tried again later. Reports from the spool come in the order of their times, at a start before any other.
    """

    def __init__(
        self,
        instance_id: int,
        socket: Path,
        spool: Path,
        handler: Handler,
        *,
        watcher: inotify.Inotify | None = None,
    ) -> None:
        """*watcher* is the daemon's shared inotify instance; without it this server takes one of its own."""
        self.instance_id = instance_id
        self.socket = socket
        self.spool = spool
        self.malformed = 0
        """Number of messages and spool files that were thrown out."""
        self._handler = handler
        self._watcher = watcher
        self._own_watcher: inotify.Inotify | None = None
        self._watch: inotify.Watch | None = None
        self._unwatchable = False
        self._listener: sockets.socket | None = None
        self._resume: asyncio.TimerHandle | None = None
        self._main: asyncio.Task[None] | None = None
        self._busy: set[asyncio.Task[None]] = set()
        self._quiet: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()
        self._spooled = asyncio.Event()
        self._caught_up = asyncio.Event()
        self._draining = asyncio.Lock()
        self._complaints = 0
        self._complained = -math.inf

    async def start(self) -> None:
        """Listen, and work off the spool; raise ``HostFailed`` when the socket or the folder can't be made.

        Returns at once: connections are accepted, and answered when everything that was spooled earlier is handled.
        """
        try:
            for folder in (self.socket.parent, self.spool):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._listener = self._listen()
        except OSError as error:
            raise CcorchError(
                ErrorCode.HOST_FAILED, f"the event socket {self.socket} cannot be opened: {error.strerror or error}"
            ) from error
        self._watch_spool()
        self._main = asyncio.create_task(self._serve(), name=f"reports of instance {self.instance_id}")

    def _listen(self) -> sockets.socket:
        self.socket.unlink(missing_ok=True)
        listener = sockets.socket(sockets.AF_UNIX, sockets.SOCK_SEQPACKET | sockets.SOCK_NONBLOCK)
        try:
            listener.bind(str(self.socket))
            self.socket.chmod(0o600)
            listener.listen(1024)
        except BaseException:
            listener.close()
            raise
        return listener

    async def close(self) -> None:
        """Stop accepting, let running handlers finish (2 s at most), end. What they leave undone is in the spool."""
        if self._main is None:
            return
        if not self._closing.is_set():
            self._closing.set()
            self._spooled.set()
        await asyncio.shield(self._main)

    async def _serve(self) -> None:
        assert self._listener is not None
        try:
            async with asyncio.TaskGroup() as group:
                spool = group.create_task(self._work_off_spool())
                self._accept_from(self._listener, group)
                await self._closing.wait()
                self._stop_accepting(self._listener)
                self.socket.unlink(missing_ok=True)
                self._listener.close()
                for task in self._quiet:
                    task.cancel()
                running = {spool, *self._busy}
                _done, late = await asyncio.wait(running, timeout=_CLOSE_SECONDS)
                for task in late:
                    task.cancel()
        finally:
            self._stop_accepting(self._listener)
            self._listener.close()
            if self._watch is not None:
                self._watch.cancel()
            if self._own_watcher is not None:
                self._own_watcher.close()

    # The socket

    def _accept_from(self, listener: sockets.socket, group: asyncio.TaskGroup) -> None:
        """Accept whenever somebody waits. (A cancelled loop.sock_accept() can lose the connection it has just made.)"""
        self._resume = None
        asyncio.get_running_loop().add_reader(listener, self._accept, listener, group)

    def _stop_accepting(self, listener: sockets.socket) -> None:
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None
        if listener.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(listener)

    def _accept(self, listener: sockets.socket, group: asyncio.TaskGroup) -> None:
        try:
            connection, _address = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:  # no descriptors left: those waiting stay in the queue meanwhile
            _log.warning("the event socket of instance %d cannot accept: %s", self.instance_id, error)
            self._stop_accepting(listener)
            self._resume = asyncio.get_running_loop().call_later(0.2, self._accept_from, listener, group)
            return
        connection.setblocking(False)
        task = group.create_task(self._converse(connection))
        self._quiet.add(task)
        # A task that is cancelled before its first step closes nothing.
        task.add_done_callback(lambda _task: connection.close())
        task.add_done_callback(self._quiet.discard)
        task.add_done_callback(self._busy.discard)

    async def _converse(self, connection: sockets.socket) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        with connection:
            try:
                if not self._same_user(connection):
                    return
                while True:
                    async with asyncio.timeout(_IDLE_SECONDS):
                        data = await loop.sock_recv(connection, MESSAGE_LIMIT + 1)
                    if not data:
                        return
                    self._quiet.discard(task)
                    self._busy.add(task)
                    answer = await self._answer(data)
                    async with asyncio.timeout(_IDLE_SECONDS):
                        await loop.sock_sendall(connection, answer)
                    self._busy.discard(task)
                    if self._closing.is_set():
                        return
                    self._quiet.add(task)
            except OSError:  # TimeoutError too: the helper is gone, or never said anything
                return
            except Exception:
                _log.exception("a connection to the event socket of instance %d failed", self.instance_id)

    @staticmethod
    def _same_user(connection: sockets.socket) -> bool:
        credentials = connection.getsockopt(sockets.SOL_SOCKET, sockets.SO_PEERCRED, struct.calcsize("3i"))
        _pid, uid, _gid = struct.unpack("3i", credentials)
        return uid in (0, os.getuid())

    async def _answer(self, data: bytes) -> bytes:
        try:
            if len(data) > MESSAGE_LIMIT:
                raise _Malformed(f"more than {MESSAGE_LIMIT} bytes")
            message = _decode(data)
            await self._caught_up.wait()
            if self._closing.is_set():
                return b'{"ok": false, "error": "closing"}'
            if message.get("spool") is True:
                result = await self._announced(message["id"])
            else:
                result = await self._handler(_report(self.instance_id, message))
        except _Malformed as error:
            self._complain(f"a message was malformed: {error}")
            return json.dumps({"ok": False, "drop": True, "error": str(error)}).encode()
        except Exception as error:
            _log.exception("a report of instance %d could not be handled", self.instance_id)
            return json.dumps({"ok": False, "error": type(error).__name__}).encode()
        try:
            answer = json.dumps({**result, "ok": True}).encode()
        except (TypeError, ValueError):
            _log.exception("the answer to a report of instance %d is no JSON", self.instance_id)
            answer = b""
        return answer if 0 < len(answer) <= _ANSWER_LIMIT else b'{"ok": true}'

    def _complain(self, sentence: str) -> None:
        """Count, and log the first of a burst only: whoever sends rubbish sends much of it."""
        self.malformed += 1
        self._complaints += 1
        if time.monotonic() - self._complained >= _BURST_SECONDS:
            _log.warning("instance %d: %s (%d since the last such line)", self.instance_id, sentence, self._complaints)
            self._complained, self._complaints = time.monotonic(), 0

    # The spool

    @property
    def _watching(self) -> bool:
        return self._watch is not None and self._watch.active

    def _watch_spool(self) -> None:
        try:
            if self._watcher is None:
                self._own_watcher = self._watcher = inotify.Inotify()
            self.spool.mkdir(mode=0o700, parents=True, exist_ok=True)
            mask = inotify.MOVED_TO | inotify.ONLYDIR
            self._watch = self._watcher.watch(self.spool, mask, self._spool_changed)
        except OSError as error:
            if not self._unwatchable:
                _log.warning(
                    "the spool %s cannot be watched, looking every %d s: %s", self.spool, _RESCAN_SECONDS, error
                )
            self._unwatchable = True

    def _spool_changed(self, change: inotify.Change) -> None:
        if change.lost or change.name.endswith(".json"):
            self._spooled.set()

    async def _work_off_spool(self) -> None:
        """Handle everything in the spool now, and whatever comes in later, until close()."""
        _handled, failed = await self._drain(everything=True)
        self._caught_up.set()
        least, most = _RETRY_SECONDS
        pause = least
        while not self._closing.is_set():
            timeout = pause if failed else None if self._watching else _RESCAN_SECONDS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._spooled.wait()
            if self._closing.is_set():
                return
            self._spooled.clear()
            if not self._watching:
                self._watch_spool()
            _handled, failed = await self._drain()
            pause = min(pause * 2, most) if failed else least

    async def drain_spool(self) -> int:
        """Handle what lies in the spool now, in the order of the names; return how many reports were handled."""
        handled, _failed = await self._drain()
        return handled

    async def _drain(self, *, everything: bool = False) -> tuple[int, int]:
        """Return how many files were handled, and how many stay because their handler failed.

        With *everything*, large files whose announcement died with an earlier daemon are taken too.
        """
        endings = (".json", ".large") if everything else (".json",)
        handled = failed = 0
        async with self._draining:
            try:
                names = sorted(entry.name for entry in os.scandir(self.spool) if entry.name.endswith(endings))
            except OSError:
                names = []
            for name in names:
                if self._closing.is_set():
                    break
                path = self.spool / name
                try:
                    await self._file(path)
                    handled += 1
                except FileNotFoundError:
                    continue
                except _Malformed as error:
                    self._complain(f"the spool file {name} is malformed: {error}")
                    self._put_aside(path)
                except Exception:
                    failed += 1
                    if failed == 1:
                        _log.exception("the spooled report %s of instance %d stays", name, self.instance_id)
        return handled, failed

    async def _file(self, path: Path) -> dict[str, object]:
        """Handle the report in *path*, then delete it."""

        def read() -> Report:
            about = path.lstat()
            if not stat.S_ISREG(about.st_mode):
                raise _Malformed("no regular file")
            if about.st_size > _FILE_LIMIT:
                raise _Malformed(f"more than {_FILE_LIMIT} bytes")
            return _report(self.instance_id, _decode(path.read_bytes()))

        result = await self._handler(await asyncio.to_thread(read))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return result

    async def _announced(self, uid: str) -> dict[str, object]:
        """Handle the large report that a helper has just written and waits for."""
        for path in self.spool.glob(f"*-{uid}.large"):
            try:
                return await self._file(path)
            except FileNotFoundError:
                break  # its helper has lost patience and renamed it
            except _Malformed:
                self._put_aside(path)
                raise
        return {}

    def _put_aside(self, path: Path) -> None:
        """Keep a malformed file for whoever wants to know, but not more than a few of them."""
        bad = self.spool / "bad"
        try:
            bad.mkdir(mode=0o700, exist_ok=True)
            path.replace(bad / path.name)
            for old in sorted(bad.iterdir())[:-_BAD_FILES]:
                old.unlink()
        except OSError as error:
            _log.warning("%s cannot be put aside: %s", path, error)
            with contextlib.suppress(OSError):
                path.unlink()

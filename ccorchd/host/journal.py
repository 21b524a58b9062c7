# SPDX-License-Identifier: LGPL-2.1-or-later
"""Structured entries in the journal, by its native protocol (https://systemd.io/JOURNAL_NATIVE_PROTOCOL/).

The socket is written to directly and without waiting: sd_journal_send(3), through pystemd as well, blocks while
journald is busy, and takes a line for sent when there is no journald.

journald's rate limit counts everything below ``user@UID.service`` together, so that one loud instance would take the
others' lines with it. So each instance has a limit here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import socket
import sys
import threading
import time
from dataclasses import dataclass
from typing import Final

from ccorchd.model import Event

MESSAGE_IDS: Final[dict[str, str]] = {
    "instance.created": "64d7c92bcfd14fcd8edc1f7db887a985",
    "instance.started": "c2cda2ce628e4251bf27b4d1c08d3210",
    "instance.state": "95482a6d30b74f419c35fd578ac91d98",
    "instance.stopped": "92e63940cf0d4960a715333e28b4aced",
    "instance.failed": "43dae385a10b4204883d28f630b0b692",
    "instance.removed": "b49f93353086478bbdbad0fd4914e7ac",
    "instance.adopted": "9eed09a163ac45629a12f323ae82b911",
    "instance.lost": "0b6db990e1e0475a9581790aafc8688d",
    "agent.prompt": "52219a3edab548ae937b72aaff83d17d",
    "agent.session": "88d3f07a80e2424093611513eaf08d3d",
    "agent.tool": "4ff663668d3b4b098e35900d88467864",
    "agent.answer": "3d7cd55bf28c4388b931d68bd344e142",
    "agent.waiting": "efdfca162c2a4384a7685223716708f4",
    "agent.permission": "133d70a24d6940188e0865c27d8d5660",
    "agent.subagent": "a0cd489049924ddfb17b0262a54bc05b",
    "agent.status": "c327062944ee4151bc3a846a432a7865",
    "agent.error": "dc353c4d82074f789adb160c38531623",
    "setup.step": "324012906163474e95f891ba1a6580af",
    "setup.failed": "e6d130d79b3b4f6aa1071ce58f3ad5c9",
    "daemon.started": "fa9dc140dbec4442ae88f3b15ddc6ef4",
    "daemon.stopping": "b9dc2230f39a477a9d84a3181b413a2d",
    "audit.call": "dad543612978432b97d226d77e98b7df",
    "audit.refused": "9a77834fb9f24bf09d6d6823fb3a4320",
    "project.registered": "e37a7ebef2824f7584993993f76aed5d",
    "project.removed": "0020311c543c4981908fdda7d1c0ee83",
    "instance.oom": "08db0dedf897458d9355e1e698966221",
    "instance.merged": "22eba6e18f544a07ad185dc50f93cbbc",
    "agent.exited": "849208745831471383afb9c00484f8be",
    "daemon.reloaded": "3010a295d609437a80c28783c663a701",
    "project.agreed": "6e3d6a6679934e319643264e75f9f65c",
    "journal.dropped": "e964144b5ee14e12bff5b50442d4f994",
}
"""The message id of each kind of event; ``units/catalog/ccorch.catalog`` explains it to ``journalctl -x``."""

SOCKET: Final = "/run/systemd/journal/socket"

_VALUE_LIMIT: Final = 32 * 1024
"""Bytes of one field: a datagram must fit into the socket's buffer (208 KiB)."""

_FIELD: Final = re.compile(r"[A-Z][A-Z0-9_]{0,63}\Z")
_ESCAPES: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_PRIORITIES: Final = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


@dataclass(slots=True)
class _Bucket:
    """What is left for one instance until :attr:`until`, on the monotonic clock."""

    until: float
    left: int
    unit: str | None
    dropped: int = 0
    timer: asyncio.TimerHandle | None = None


class Journal:
    """Writes to the journal, or to standard error where there is none. Nothing in it raises or waits."""

    def __init__(
        self, identifier: str = "ccorchd", *, limit: int = 200, window: float = 10.0, path: str = SOCKET
    ) -> None:
        """*limit* is how many lines each instance may write in *window* seconds; 0 means any number."""
        self.limit = limit
        self._identifier = identifier
        self._window = window
        self._path = path
        self._socket: socket.socket | None = None
        self._socket_lock = threading.Lock()  # modules log from threads as well
        self._buckets: dict[str, _Bucket] = {}

    def send(
        self, message: str, *, priority: int = 6, message_id: str | None = None, unit: str | None = None, **fields: str
    ) -> None:
        """Write one entry.

        *priority* is that of syslog; *unit* is the scope under which ``journalctl --user -u`` shall show the line.
        *fields* are in capitals; the lines of one ``CCORCH_INSTANCE`` are limited, and lines without it are not.
        """
        try:
            instance = fields.get("CCORCH_INSTANCE", "")
            if instance and not self._admit(instance, unit):
                return
            self._write(message, priority, message_id, unit, fields)
        except Exception as error:  # a log line is worth less than what it tells of
            self._complain(f"a line for the journal is lost: {error!r}")

    def event(self, event: Event, unit: str | None = None) -> None:
        """Write an event row, with its id in ``CCORCH_EVENT``, so that the journal leads back to the history."""
        instance = f"{event.project}/{event.instance}" if event.instance else ""
        fields = {
            "CCORCH_INSTANCE": instance,
            "CCORCH_PROJECT": event.project,
            "CCORCH_KIND": event.kind,
            "CCORCH_ACTOR": event.actor,
            "CCORCH_EVENT": str(event.id) if event.id else "",
            "CCORCH_DATA": json.dumps(event.data, default=str) if event.data else "",
        }
        given = {key: value for key, value in fields.items() if value}
        message_id = MESSAGE_IDS.get(event.kind)
        self.send(event.message, priority=event.priority, message_id=message_id, unit=unit, **given)

    def close(self) -> None:
        """Tell what was dropped until now, and close the socket. The next line opens another."""
        for instance in tuple(self._buckets):
            self._settle(instance)
        with self._socket_lock:
            self._hang_up()

    # The limit

    def _admit(self, instance: str, unit: str | None) -> bool:
        now = time.monotonic()
        bucket = self._buckets.get(instance)
        if bucket is not None and now >= bucket.until:
            self._settle(instance)
            bucket = None
        if bucket is None:
            self._forget_quiet_ones(now)
            bucket = self._buckets[instance] = _Bucket(now + self._window, self.limit, unit)
        if self.limit <= 0:
            return True
        if bucket.left > 0:
            bucket.left -= 1
            return True
        bucket.dropped += 1
        if bucket.timer is None:
            # Without a loop the next line tells it.
            with contextlib.suppress(RuntimeError):
                loop = asyncio.get_running_loop()
                bucket.timer = loop.call_later(bucket.until - now, self._settle, instance)
        return False

    def _settle(self, instance: str) -> None:
        """End the instance's window, and tell how many lines it lost, if any."""
        bucket = self._buckets.pop(instance, None)
        if bucket is None:
            return
        if bucket.timer is not None:
            bucket.timer.cancel()
        if bucket.dropped:
            lines = "line" if bucket.dropped == 1 else "lines"
            text = f"{bucket.dropped} {lines} of {instance} dropped: more than {self.limit} in {self._window:g} seconds"
            fields = {"CCORCH_INSTANCE": instance, "CCORCH_KIND": "journal.dropped"}
            with contextlib.suppress(Exception):
                self._write(text, 4, MESSAGE_IDS["journal.dropped"], bucket.unit, fields)

    def _forget_quiet_ones(self, now: float) -> None:
        for instance, bucket in list(self._buckets.items()):
            if now >= bucket.until and not bucket.dropped:
                del self._buckets[instance]

    # The wire

    def _write(
        self, message: str, priority: int, message_id: str | None, unit: str | None, fields: dict[str, str]
    ) -> None:
        text = _printable(message)
        entry = {"MESSAGE": text, "PRIORITY": str(priority), "SYSLOG_IDENTIFIER": self._identifier}
        if message_id:
            entry["MESSAGE_ID"] = message_id
        if unit:
            entry["USER_UNIT"] = unit
        entry.update((key, value) for key, value in fields.items() if _FIELD.match(key))
        if not self._deliver(b"".join(_field(key, value) for key, value in entry.items())):
            self._complain(text)

    def _deliver(self, datagram: bytes) -> bool:
        with self._socket_lock:
            for _ in range(2):  # journald may have been restarted, which makes the old socket useless
                try:
                    if self._socket is None:
                        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
                        self._socket.connect(self._path)
                    self._socket.send(datagram)
                    return True
                except BlockingIOError:
                    return False
                except OSError:
                    self._hang_up()
        return False

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _complain(self, text: str) -> None:
        with contextlib.suppress(Exception):
            print(f"{self._identifier}: {text}", file=sys.stderr, flush=True)


class JournalHandler(logging.Handler):
    """Sends what the modules log with :mod:`logging` to a :class:`Journal`."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        try:
            priority = next((value for level, value in _PRIORITIES if record.levelno >= level), 7)
            place = {"CODE_FILE": record.pathname, "CODE_LINE": str(record.lineno), "CODE_FUNC": record.funcName or ""}
            self._journal.send(self.format(record), priority=priority, LOGGER=record.name, **place)
        except Exception:
            self.handleError(record)


def _printable(text: str) -> str:
    """Return *text* without escape sequences and control characters: journalctl shows such lines as "blob data"."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text)).rstrip("\n")


def _field(key: str, value: str) -> bytes:
    data = value.encode("utf-8", "replace")
    if len(data) > _VALUE_LIMIT:
        # Not in the middle of a character, which would make the field binary.
        data = data[:_VALUE_LIMIT].decode("utf-8", "ignore").encode() + " […]".encode()
    if b"\n" in data:
        return key.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
    return key.encode() + b"=" + data + b"\n"

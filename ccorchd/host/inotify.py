# SPDX-License-Identifier: LGPL-2.1-or-later
"""inotify(7) on the event loop. The standard library has no binding, and three calls need no dependency."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_log = logging.getLogger(__name__)

MODIFY: Final = 0x2
CLOSE_WRITE: Final = 0x8
MOVED_TO: Final = 0x80
CREATE: Final = 0x100
DELETE: Final = 0x200
Q_OVERFLOW: Final = 0x4000
IGNORED: Final = 0x8000
ONLYDIR: Final = 0x1000000
_MASK_CREATE: Final = 0x10000000

_HEAD: Final = struct.Struct("iIII")


@dataclass(frozen=True, slots=True)
class Change:
    """*mask* holds the bits above; *name* is the file in the watched folder, empty if it is about the folder itself."""

    mask: int
    name: str

    @property
    def lost(self) -> bool:
        """True if changes were dropped (look at everything again) or the watch has ended because the path is gone."""
        return bool(self.mask & (Q_OVERFLOW | IGNORED))


class Watch:
    """One watched path. It ends by :meth:`cancel`, with its :class:`Inotify`, or when its path is deleted."""

    def __init__(self, inotify: Inotify, descriptor: int, callback: Callable[[Change], None]) -> None:
        self._inotify = inotify
        self.descriptor = descriptor
        self.callback = callback
        self.active = True

    def cancel(self) -> None:
        """End it; calling it again does nothing."""
        if self.active:
            self.active = False
            self._inotify._forget(self.descriptor)


class Inotify:
    """One inotify instance, which watches many paths. Users have few instances (128 by default): share it."""

    def __init__(self) -> None:
        """Raise OSError when the user has no inotify instance left."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._loop = asyncio.get_running_loop()
        self._watches: dict[int, Watch] = {}
        self._fd: int = self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._fd < 0:
            raise self._error("inotify_init1")
        self._loop.add_reader(self._fd, self._read)

    @staticmethod
    def _error(what: str) -> OSError:
        number = ctypes.get_errno()
        return OSError(number, os.strerror(number), what)

    def watch(self, path: Path, mask: int, callback: Callable[[Change], None]) -> Watch:
        """Call *callback* for each change of *path* in *mask*, and for lost ones. Raise OSError if that can't be done.

        A path can be watched once: a second watch of the same folder raises FileExistsError.
        """
        if self._fd < 0:
            raise OSError("this inotify instance is closed")
        descriptor = self._libc.inotify_add_watch(self._fd, os.fsencode(path), ctypes.c_uint32(mask | _MASK_CREATE))
        if descriptor < 0:
            raise self._error(str(path))
        watch = Watch(self, descriptor, callback)
        self._watches[descriptor] = watch
        return watch

    def _forget(self, descriptor: int) -> None:
        del self._watches[descriptor]
        self._libc.inotify_rm_watch(self._fd, descriptor)

    def _read(self) -> None:
        try:
            buffer = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        offset = 0
        while offset + _HEAD.size <= len(buffer):
            descriptor, mask, _cookie, length = _HEAD.unpack_from(buffer, offset)
            offset += _HEAD.size
            name = os.fsdecode(buffer[offset : offset + length].rstrip(b"\0"))
            offset += length
            if mask & Q_OVERFLOW:
                for watch in list(self._watches.values()):
                    self._tell(watch, Change(mask, ""))
            elif (found := self._watches.get(descriptor)) is not None:
                if mask & IGNORED:
                    found.active = False
                    del self._watches[descriptor]
                self._tell(found, Change(mask, name))

    @staticmethod
    def _tell(watch: Watch, change: Change) -> None:
        try:
            watch.callback(change)
        except Exception:
            _log.exception("a watcher of files failed")

    def close(self) -> None:
        """End every watch. Calling it again does nothing."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        for watch in self._watches.values():
            watch.active = False
        self._watches.clear()

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Files that an agent keeps about itself, watched: they tell what fires no hook (Esc, an answered dialog)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from ccorchd.host.inotify import CLOSE_WRITE, MODIFY, MOVED_TO, Change, Inotify, Watch

_log = logging.getLogger(__name__)


class StatusFiles:
    """Follows single files through one watch on each of their folders, which instances share."""

    def __init__(self, inotify: Inotify) -> None:
        self._inotify = inotify
        self._folders: dict[Path, Watch] = {}
        self._files: dict[Path, Callable[[], None]] = {}

    def follow(self, path: Path, changed: Callable[[], None]) -> None:
        """Call *changed* whenever *path* has been written or replaced. What cannot be watched is logged, no more."""
        folder = path.parent
        self._files[path] = changed
        if folder in self._folders and self._folders[folder].active:
            return
        try:
            folder.mkdir(parents=True, mode=0o700, exist_ok=True)
            mask = MODIFY | CLOSE_WRITE | MOVED_TO
            self._folders[folder] = self._inotify.watch(folder, mask, lambda change: self._tell(folder, change))
        except OSError as error:
            _log.warning("%s cannot be watched: %s", folder, error.strerror or error)

    def forget(self, path: Path) -> None:
        """Stop following *path*; does nothing for one that is not followed."""
        self._files.pop(path, None)
        folder = path.parent
        if not any(other.parent == folder for other in self._files) and folder in self._folders:
            self._folders.pop(folder).cancel()

    def _tell(self, folder: Path, change: Change) -> None:
        if change.lost:
            for path, changed in list(self._files.items()):
                if path.parent == folder:
                    changed()
        elif (changed_one := self._files.get(folder / change.name)) is not None:
            changed_one()

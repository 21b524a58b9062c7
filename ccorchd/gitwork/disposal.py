# SPDX-License-Identifier: LGPL-2.1-or-later
"""Take folders away: delete what holds nothing, set aside what does."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
from pathlib import Path


def discard(folder: Path) -> None:
    """Delete *folder* and all in it, write-protected folders too (Go's module cache has them).

    Raise OSError if something stays. Links are not followed. A folder that is not there is fine.
    """
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        folder.unlink()
        return
    try:
        shutil.rmtree(folder)
    except PermissionError:
        for parent, _, _ in os.walk(folder, onerror=None):
            _make_writable(parent)
        shutil.rmtree(folder)


def _make_writable(folder: str) -> None:
    try:
        mode = os.stat(folder, follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode) and mode & 0o700 != 0o700:
            os.chmod(folder, mode | 0o700)
    except OSError:
        pass  # the deletion says what cannot be deleted


def set_aside(folder: Path, removed: Path, label: str) -> Path:
    """Rename *folder* to a new name in *removed* (beside it, when that is another file system); return the new path."""
    removed.mkdir(mode=0o700, parents=True, exist_ok=True)
    stem = f"{label}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    place = removed
    number = 0
    while True:
        target = place / (stem if not number else f"{stem}-{number}")
        try:
            # mkdir decides who has the name; renaming a folder over an empty one is atomic (rename(2)).
            target.mkdir(mode=0o700)
            folder.rename(target)
            return target
        except FileExistsError:
            number += 1
        except OSError as error:
            target.rmdir()
            if error.errno != errno.EXDEV or place != removed:
                raise
            place = folder.parent
            stem = f".removed-{stem}"

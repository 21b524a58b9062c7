# SPDX-License-Identifier: LGPL-2.1-or-later
"""Copy what ``.worktreeinclude`` names from the main checkout into a new worktree (see docs/projectfile.md)."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import stat
from pathlib import Path
from typing import Final

from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError
from ccorchd.gitwork.process import GitRun

INCLUDE_FILE: Final = ".worktreeinclude"

_log: Final = logging.getLogger(__name__)
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_COPY_STEP: Final = 1 << 30


def copy_included(git: GitRun, root: Path, path: Path) -> list[str]:
    """Copy the untracked files of *root* that its ``.worktreeinclude`` matches to *path*; return their names.

    The patterns are gitignore(5)'s. Nothing that is there already and nothing tracked is overwritten; links stay links;
    nothing is written through a link, so nothing lands outside *path*. Raise ``NoSpace`` when the disk is full.
    """
    patterns = root / INCLUDE_FILE
    if not patterns.is_file():
        return []
    wanted = git.read(root, "ls-files", "-z", "--others", "--ignored", f"--exclude-from={patterns}", timeout=120).fields
    names = [os.fsdecode(name) for name in wanted if not name.endswith(b"/")]
    if not names:
        return []
    # Also what a sparse checkout has left out is tracked.
    tracked = {os.fsdecode(name) for name in git.read(path, "ls-files", "-z", "--cached", timeout=120).fields}
    copied = []
    base = os.open(path, _FOLDER)
    try:
        for name in names:
            if name not in tracked and _copy(root, base, name):
                copied.append(name.encode("utf-8", "replace").decode())
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CcorchError(
                ErrorCode.NO_SPACE, f"no space is left for {path / name}", "Free some disk space, then try again."
            ) from error
        raise CcorchError(
            ErrorCode.HOST_FAILED, f"{name}, which {INCLUDE_FILE} names, cannot be copied: {error.strerror}"
        ) from error
    finally:
        os.close(base)
    return copied


def _copy(root: Path, base: int, name: str) -> bool:
    """Copy one file; False when something is there, or in the way, or when it is neither file nor link."""
    *parents, last = name.split("/")
    if ".git" in (part.lower() for part in (*parents, last)):
        return False
    source = root / name
    try:
        facts = source.lstat()
    except FileNotFoundError:
        return False
    if not (stat.S_ISLNK(facts.st_mode) or stat.S_ISREG(facts.st_mode)):
        return False
    folder = os.dup(base)
    try:
        place = root
        for part in parents:
            place /= part
            inner = _enter(folder, part, stat.S_IMODE(place.stat().st_mode))
            os.close(folder)
            folder = inner
        if stat.S_ISLNK(facts.st_mode):
            os.symlink(os.readlink(source), last, dir_fd=folder)
        else:
            _copy_file(source, last, folder)
    except FileExistsError:
        return False
    except NotADirectoryError:
        # ELOOP comes as this too with O_DIRECTORY: a file or a link stands where a folder should be.
        _log.warning("%s is not copied: a file or a link is in the way", name)
        return False
    finally:
        os.close(folder)
    return True


def _enter(folder: int, part: str, mode: int) -> int:
    try:
        return os.open(part, _FOLDER, dir_fd=folder)
    except FileNotFoundError:
        os.mkdir(part, mode | stat.S_IRWXU, dir_fd=folder)
        return os.open(part, _FOLDER, dir_fd=folder)


def _copy_file(source: Path, name: str, folder: int) -> None:
    with open(os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as original:
        facts = os.fstat(original.fileno())
        target = os.open(name, _NEW_FILE, 0o600, dir_fd=folder)
        try:
            with open(target, "wb") as copy:
                try:
                    # Shares the blocks where the file system can.
                    while os.copy_file_range(original.fileno(), copy.fileno(), _COPY_STEP):
                        pass
                except OSError as error:
                    if error.errno in (errno.ENOSPC, errno.EDQUOT):
                        raise
                    original.seek(os.lseek(copy.fileno(), 0, os.SEEK_CUR))
                    shutil.copyfileobj(original, copy)
                copy.flush()
                os.fchmod(copy.fileno(), stat.S_IMODE(facts.st_mode) & 0o777)
                os.utime(copy.fileno(), ns=(facts.st_atime_ns, facts.st_mtime_ns))
        except BaseException:
            os.unlink(name, dir_fd=folder)
            raise

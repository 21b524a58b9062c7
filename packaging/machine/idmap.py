# SPDX-License-Identifier: LGPL-2.1-or-later
"""ID-mapped bind mounts: a folder of one owner appears as another's, and what is written belongs to the first.

Python has no wrapper for the new mount system calls, and util-linux only learnt them in 2.39 (Debian 12 has 2.38).
Sources: open_tree(2), move_mount(2), mount_setattr(2), user_namespaces(7). Needs Linux 5.12 and a file system that
supports it (ext4, xfs, btrfs, tmpfs from 6.3, overlayfs not).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from .errors import MachineError, NotPossibleHere

# The numbers are the same on every architecture except alpha, which Debian does not release any more.
_OPEN_TREE = 428
_MOVE_MOUNT = 429
_MOUNT_SETATTR = 442

_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_MOUNT_ATTR_IDMAP = 0x00100000
_HIGHEST_ID = 4294967294

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _MountAttr(ctypes.Structure):
    """struct mount_attr of linux/mount.h."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def _syscall(name: str, number: int, *arguments: object) -> int:
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def swapped(first: int, second: int) -> str:
    """Return the text of a uid_map (or gid_map) that exchanges two ids and keeps every other one as it is.

    In the map of an ID-mapped mount the left column is the id on disk and the right one the id that programs see. It
    has to be a complete permutation: an id that is missing shows as ``nobody`` and cannot be written at all.
    """
    low, high = sorted((first, second))
    if low == high:
        return f"0 0 {_HIGHEST_ID + 1}\n"
    spans = [(0, 0, low), (low, high, 1), (low + 1, low + 1, high - low - 1), (high, low, 1)]
    spans.append((high + 1, high + 1, _HIGHEST_ID - high))
    return "".join(f"{disk} {seen} {count}\n" for disk, seen, count in spans if count > 0)


@contextlib.contextmanager
def _user_namespace(uid_map: str, gid_map: str) -> Iterator[int]:
    """Yield a descriptor of a user namespace with these maps. It lives as long as a descriptor or mount holds it."""
    holder = subprocess.Popen(
        ["unshare", "--user", "--", "sh", "-c", "echo ready; read -r line"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stderr is not None
        if holder.stdout.readline() != "ready\n":
            raise NotPossibleHere(f"This kernel gives no user namespace: {holder.stderr.read().strip()}")
        Path(f"/proc/{holder.pid}/uid_map").write_text(uid_map)
        Path(f"/proc/{holder.pid}/gid_map").write_text(gid_map)
        descriptor = os.open(f"/proc/{holder.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
    finally:
        holder.communicate("\n")


def bind_mapped(source: Path, target: Path, *, uid: tuple[int, int], gid: tuple[int, int]) -> None:
    """Bind *source* on *target* in this mount namespace; each pair is (id on disk, id that programs see).

    Raise NotPossibleHere with the reason when kernel or file system cannot map ids, MachineError for any other trouble.
    """
    tree = -1
    try:
        tree = _syscall(
            "open_tree",
            _OPEN_TREE,
            ctypes.c_int(_AT_FDCWD),
            ctypes.c_char_p(os.fsencode(source)),
            ctypes.c_uint(_OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC),
        )
        with _user_namespace(swapped(*uid), swapped(*gid)) as namespace:
            attributes = _MountAttr(attr_set=_MOUNT_ATTR_IDMAP, userns_fd=namespace)
            _syscall(
                "mount_setattr",
                _MOUNT_SETATTR,
                ctypes.c_int(tree),
                ctypes.c_char_p(b""),
                ctypes.c_uint(_AT_EMPTY_PATH),
                ctypes.byref(attributes),
                ctypes.c_size_t(ctypes.sizeof(attributes)),
            )
        _syscall(
            "move_mount",
            _MOVE_MOUNT,
            ctypes.c_int(tree),
            ctypes.c_char_p(b""),
            ctypes.c_int(_AT_FDCWD),
            ctypes.c_char_p(os.fsencode(target)),
            ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH),
        )
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.EOPNOTSUPP):
            raise NotPossibleHere(
                f"{source} cannot be shown to another user: its file system or this kernel "
                f"(Linux {os.uname().release}) has no ID-mapped mounts ({error.strerror})."
            ) from error
        raise MachineError(f"{source} cannot be bound into the machine: {error.strerror}.") from error
    finally:
        if tree >= 0:
            os.close(tree)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Worktrees and branches of instances: create, fill, look at, merge, remove.

Git runs in threads with time-outs. Changes of one repository go one after the other; other people's git processes in it
are waited for. What each operation does stands in :mod:`ccorchd.gitwork`.
"""

from __future__ import annotations

import asyncio
import errno
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeVar

from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError
from ccorchd.gitwork import creation, include, layout, merging, removal, review
from ccorchd.gitwork.creation import Created
from ccorchd.gitwork.layout import Repository
from ccorchd.gitwork.process import LEAST_VERSION, GitRun
from ccorchd.gitwork.refs import check_branch, check_commit, check_revision
from ccorchd.gitwork.removal import Removed
from ccorchd.gitwork.review import WorktreeStatus

__all__ = ["Removed", "Repository", "WorktreeStatus", "Worktrees"]

T = TypeVar("T")
_VERSION: Final = re.compile(r"git version ((\d+)\.(\d+)\S*)")


class Worktrees:
    """All git work of the daemon. Paths are absolute; *repository* is what :meth:`repository` gives as ``root``."""

    def __init__(self, data_dir: Path, *, timeout: float = 300) -> None:
        """Worktrees lie below *data_dir*; *timeout* in seconds is for one git process that writes files."""
        self._data_dir = data_dir
        self._timeout = timeout
        self._locks: dict[str, asyncio.Lock] = {}
        self._version = ""

    async def check(self) -> str:
        """Return the version of git; raise ``MissingProgram`` if there is none or it is too old."""
        if not self._version:
            text = await self._look(lambda git: git.read(Path("/"), "version").text)
            match = _VERSION.search(text)
            if not match or (int(match[2]), int(match[3])) < LEAST_VERSION:
                least = ".".join(map(str, LEAST_VERSION))
                raise CcorchError(
                    ErrorCode.MISSING_PROGRAM, f"{text or 'This git'} is too old", f"Install git {least} or newer."
                )
            self._version = match[1]
        return self._version

    async def repository(self, path: Path) -> Repository:
        """Return the repository *path* is in: a main checkout, a subfolder of it, or one of its worktrees.

        Raise ``NotARepository``, ``NoCommits``, ``NotAllowed`` (somebody else's), ``MissingProgram``.
        """
        await self.check()
        return await self._look(lambda git: layout.locate(git, path))

    def path_for(self, project: str, name: str) -> Path:
        """Return where the worktree of the instance *project*/*name* lies."""
        return self._data_dir / "worktrees" / project / name

    async def branches(self, repository: Path, folder: str) -> set[str]:
        """Return the branches whose names begin with *folder* and a slash, without these."""
        prefix = f"refs/heads/{folder}/"
        found = await self._look(lambda git: git.read(repository, "for-each-ref", "--format=%(refname)", prefix).text)
        return {line.removeprefix(prefix) for line in found.splitlines()}

    async def create(
        self,
        repository: Path,
        path: Path,
        branch: str,
        base: str,
        *,
        reuse: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> str:
        """Make a worktree at *path* on a new *branch* from *base* ("" is HEAD); return the commit id it starts from.

        With *reuse* an existing branch is taken up again; the commit is then where it left *base*. Of *environment*
        the caller's PATH and SSH and GnuPG sockets are used, for hooks and filters. Raise ``BranchInUse``,
        ``InvalidArgument`` (names, no such base), ``NoCommits``, ``WrongState`` (*path* is there), ``NoSpace``,
        ``GitFailed``, ``Timeout``. Failed or cancelled, it leaves neither folder, registration nor branch.
        """
        check_branch(branch)
        base = check_revision(base or "HEAD")
        if not path.is_absolute():
            raise CcorchError(ErrorCode.INVALID_ARGUMENT, f"{path} is no absolute path")

        def work(git: GitRun) -> Created:
            self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            return creation.create(git, repository, path, branch, base, reuse=reuse, timeout=self._timeout)

        def undo(created: Created) -> None:
            creation.undo(repository, path, created.made, base)

        return (await self._change(repository, work, environment=environment, undo=undo)).commit

    async def include(self, repository: Path, path: Path) -> list[str]:
        """Copy what the ``.worktreeinclude`` of the main checkout names to *path*; return the names.

        Raise ``NoSpace``, ``HostFailed``.
        """
        return await self._look(lambda git: include.copy_included(git, repository, path))

    async def status(
        self, path: Path, branch: str, base_commit: str, repository: Path, *, base: str = ""
    ) -> WorktreeStatus:
        """Return what was done in a worktree; ahead and behind count against *base*, else the main checkout's HEAD."""
        check_branch(branch)
        check_commit(base_commit)
        if base:
            check_revision(base)
        return await self._look(lambda git: review.status(git, path, branch, base_commit, repository, base))

    async def commits(self, where: Path, base_commit: str, branch: str = "") -> list[tuple[str, str]]:
        """Return ``(id, subject)`` of the commits of *branch* since *base_commit*, newest first, at most 1000.

        *where* is the worktree or the repository; without *branch* it is HEAD there. ``InvalidArgument`` if commit or
        branch is not known.
        """
        check_commit(base_commit)
        if branch:
            check_branch(branch)
        return await self._look(lambda git: review.commits(git, where, base_commit, branch))

    async def diff(self, path: Path, base_commit: str, *, stat: bool = False, branch: str = "") -> str:
        """Return the changes in the worktree since *base_commit*: committed, uncommitted and untracked.

        With *branch* only what is committed there; *path* may then be the repository. At most 4 MiB. ``WrongState`` if
        the worktree is gone.
        """
        check_commit(base_commit)
        if branch:
            check_branch(branch)
        return await self._look(lambda git: review.diff(git, path, base_commit, branch, stat=stat))

    async def remove(
        self, repository: Path, path: Path, branch: str, base_commit: str, *, force: bool = False
    ) -> Removed:
        """Remove a worktree (also one whose folder is gone), and *branch* if that has nothing of its own or is merged.

        Raise ``WorktreeDirty`` for work that is nowhere else, unless *force*: then it is kept, and the result says
        where. ``WrongState`` if the worktree is locked.
        """
        if branch:
            check_branch(branch)
        if base_commit:
            check_revision(base_commit)  # of an instance that never got its commit id, the base as it was given
        removed = self._data_dir / "removed"

        def work(git: GitRun) -> Removed:
            return removal.remove(git, repository, path, branch, base_commit, force=force, removed=removed)

        return await self._change(repository, work)

    async def check_removable(self, repository: Path, path: Path, branch: str) -> None:
        """Raise what :meth:`remove` without *force* would raise, before anything is stopped for it."""
        if branch:
            check_branch(branch)
        await self._look(lambda git: removal.check(git, repository, path, branch))

    async def take_back(self, repository: Path, path: Path, branch: str, base_commit: str) -> Removed:
        """Undo :meth:`create` for an instance whose agent never ran: what set-up steps and copies left is not kept.

        If there is anything on the branch nevertheless, it is as :meth:`remove` with force.
        """
        check_branch(branch)
        check_commit(base_commit)
        removed = self._data_dir / "removed"

        def work(git: GitRun) -> Removed:
            folders = layout.git_folders(path)
            listed = [entry for entry in layout.checkouts(git, repository)[1:] if entry.path == path.resolve()]
            if folders and listed and (listed[0].branch, listed[0].head) == (branch, base_commit):
                creation.undo(repository, path, branch, base_commit)
                return Removed(layout.branch_tip(git, repository, branch) is None, "")
            return removal.remove(git, repository, path, branch, base_commit, force=True, removed=removed)

        return await self._change(repository, work)

    async def merge(self, repository: Path, branch: str, *, environment: Mapping[str, str] | None = None) -> str:
        """Merge *branch* into the main checkout's branch; return the commit that is then checked out.

        Raise ``WorktreeDirty``, ``MergeConflict`` (naming the files), ``WrongState``; all is then as it was before.
        """
        check_branch(branch)

        def work(git: GitRun) -> str:
            return merging.merge(git, repository, branch, timeout=self._timeout)

        return await self._change(repository, work, environment=environment)

    async def _look(self, work: Callable[[GitRun], T]) -> T:
        """Run what changes nothing in a thread; when cancelled, end its git."""
        git = GitRun()
        try:
            return await asyncio.to_thread(_translated, work, git)
        finally:
            git.stop.set()

    async def _change(
        self,
        repository: Path,
        work: Callable[[GitRun], T],
        *,
        environment: Mapping[str, str] | None = None,
        undo: Callable[[T], None] | None = None,
    ) -> T:
        """Run a change of *repository* in a thread, one at a time.

        A cancelled change is never left to itself: one with *undo* is ended and taken back, any other is completed
        (its git processes have time-outs); only then the cancellation goes on.
        """
        git = GitRun(environment)
        lock = self._locks.setdefault(str(repository), asyncio.Lock())
        async with lock:
            running = asyncio.ensure_future(asyncio.to_thread(_translated, work, git))
            try:
                return await asyncio.shield(running)
            except asyncio.CancelledError:
                if undo is not None:
                    git.stop.set()
                await _finish(running)
                if undo is not None and not running.cancelled() and running.exception() is None:
                    await _finish(asyncio.ensure_future(asyncio.to_thread(undo, running.result())))
                raise


async def _finish(running: asyncio.Future[T]) -> None:
    """Wait for *running* to end, however often this task is cancelled meanwhile; its outcome stays to be read."""
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError:
            continue


def _translated(work: Callable[[GitRun], T], git: GitRun) -> T:
    """Run *work*; an OSError of its own file work becomes a :class:`CcorchError`."""
    try:
        return work(git)
    except OSError as error:
        where = error.filename or "the disk"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CcorchError(
                ErrorCode.NO_SPACE, f"no space is left for {where}", "Free some disk space, then try again."
            ) from error
        raise CcorchError(ErrorCode.HOST_FAILED, f"{where} cannot be used: {error.strerror or error}") from error

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Make a worktree with its branch, or leave nothing behind."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError
from ccorchd.gitwork.disposal import discard
from ccorchd.gitwork.layout import branch_tip, git_folders
from ccorchd.gitwork.process import Answer, GitRun, busy, failure, reason

_log: Final = logging.getLogger(__name__)
_PATIENCE: Final = 10.0
_ROOM: Final = 1024**2
_NO_COMMIT: Final = (
    *("not a valid object name", "invalid reference", "not a commit", "not a valid branch point", "unknown revision"),
    *("bad revision", "bad object", "ambiguous argument", "Not a valid"),
)


@dataclass(frozen=True, slots=True)
class Created:
    """The commit a new worktree starts from, and its branch if that was made with it (else "")."""

    commit: str
    made: str


def create(git: GitRun, root: Path, path: Path, branch: str, base: str, *, reuse: bool, timeout: float) -> Created:
    """Make a worktree of the repository at *root* in *path*, on *branch* from *base*.

    One git process when all goes well. Names are checked already. Whatever fails, and when *git* is stopped: folder,
    registration and a branch that was made here are gone again when this raises.
    """
    if os.path.lexists(path) and (path.is_symlink() or not path.is_dir() or any(path.iterdir())):
        raise CcorchError(ErrorCode.WRONG_STATE, f"{path} is there already, and not empty", "Move it away first.")
    exists = branch_tip(git, root, branch) is not None
    if exists and not reuse:
        raise CcorchError(
            ErrorCode.BRANCH_IN_USE,
            f"there is a branch {branch} in {root} already",
            f"Choose another name; or, when its work is merged: git -C {root} branch -d {branch}",
        )
    made = "" if exists else branch
    try:
        _add(git, root, path, branch, base, new=not exists, timeout=timeout)
        commit = _checked_out(git, path, branch)
        if exists:
            merge_base = git.read(root, "merge-base", "--end-of-options", base, commit, accept=(0, 1))
            commit = merge_base.text or commit
        return Created(commit, made)
    except BaseException as error:
        # "exists already" told by git itself: somebody else made the branch in this very moment, so it is not ours.
        theirs = isinstance(error, CcorchError) and error.code is ErrorCode.BRANCH_IN_USE
        undo(root, path, "" if theirs else made, base)
        raise


def _add(git: GitRun, root: Path, path: Path, branch: str, base: str, *, new: bool, timeout: float) -> None:
    # --no-track: a branch that "tracks" origin/main would make a plain `git push` of the agent fail or go astray, and
    # the entry would be written to the repository's config under a lock that all instances share.
    words = ("--no-track", "-b", branch, "--", str(path), base) if new else ("--", str(path), branch)
    until = time.monotonic() + _PATIENCE
    pause = 0.02
    while True:
        answer = git.write(root, "worktree", "add", "--quiet", *words, accept=None, timeout=timeout)
        if answer.status == 0:
            return
        if "missing but already registered" in answer.errors or "missing but locked" in answer.errors:
            if time.monotonic() > until:
                raise failure(answer, root)
            git.write(root, "worktree", "remove", "--force", "--force", "--", str(path))
        elif busy(answer) and time.monotonic() + pause < until:
            undo(root, path, branch if new else "", base)
            git.pause(pause)
            pause = min(pause * 2, 0.5)
        else:
            raise _refusal(git, answer, root, path, branch, base)


def _refusal(git: GitRun, answer: Answer, root: Path, path: Path, branch: str, base: str) -> CcorchError:
    errors = answer.errors
    why = reason(errors)
    if f"a branch named '{branch}' already exists" in errors:
        return CcorchError(ErrorCode.BRANCH_IN_USE, f"there is a branch {branch} in {root} already")
    if "cannot lock ref" in errors and "cannot create" in errors:
        return CcorchError(
            ErrorCode.BRANCH_IN_USE,
            f"the branch {branch} cannot be made in {root}: another branch's name is in its way",
            f"git says: {why}",
        )
    if "already checked out at" in errors or "already used by worktree at" in errors:
        return CcorchError(
            ErrorCode.BRANCH_IN_USE, f"the branch {branch} is in use by another worktree", f"git says: {why}"
        )
    if any(words in why for words in _NO_COMMIT):
        if git.read(root, "rev-parse", "--verify", "--quiet", "HEAD", accept=(0, 1)).status:
            return CcorchError(
                ErrorCode.NO_COMMITS,
                f"{root} has no commits yet, so there is nothing to start from",
                f"Make a first one: git -C {root} commit --allow-empty -m 'First commit'",
            )
        return CcorchError(
            ErrorCode.INVALID_ARGUMENT,
            f"{base!r} names no commit in {root}",
            f"See git -C {root} branch --all; perhaps a git fetch is due.",
        )
    if "fatal: " not in errors and git_folders(path) is not None and _has_hook(git, path):
        return CcorchError(
            ErrorCode.GIT_FAILED,
            f"the post-checkout hook of {root} failed with status {answer.status}: {why}",
            "Make the hook work for a new worktree, or let it end with status 0.",
        )
    if "unable to write file" in errors and _too_big(git, root, path, base):
        return CcorchError(
            ErrorCode.NO_SPACE, f"no space is left for the worktree {path}", "Free some disk space, then try again."
        )
    return failure(answer, root)


def _too_big(git: GitRun, root: Path, path: Path, base: str) -> bool:
    """Git does not always say why it could not write a file; tell a full disk from what the files would need."""
    listed = git.read(root, "ls-tree", "-r", "-z", "--format=%(objectsize)", base, accept=(0, 128)).fields
    needed = sum(int(size) for size in listed if size.isdigit())
    place = next(parent for parent in path.parents if parent.is_dir())
    return shutil.disk_usage(place).free < needed + needed // 10 + _ROOM


def _has_hook(git: GitRun, path: Path) -> bool:
    hook = git.read(path, "rev-parse", "--git-path", "hooks/post-checkout", accept=(0, 128))
    return os.access(path / os.fsdecode(hook.output).rstrip("\n"), os.X_OK)


def _checked_out(git: GitRun, path: Path, branch: str) -> str:
    if tip := branch_tip(git, path, branch):
        return tip
    raise CcorchError(ErrorCode.GIT_FAILED, f"git made the worktree {path} without its branch {branch}")


def undo(root: Path, path: Path, branch: str, base: str) -> None:
    """Take back what a failed or unwanted :func:`create` made; never raises. An empty *branch* was not ours.

    The branch goes only if it holds nothing that *base* does not (a hook may have committed).
    """
    git = GitRun()  # of its own: the operation's may be stopped
    steps = (
        lambda: discard(path),
        lambda: git.write(root, "worktree", "remove", "--force", "--force", "--", str(path), accept=(0, 128)),
        lambda: _drop_branch(git, root, branch, base) if branch else None,
    )
    for step in steps:
        try:
            step()
        except (CcorchError, OSError) as error:
            _log.warning("cannot take back all of the worktree %s: %s", path, error)
    with contextlib.suppress(OSError):
        path.parent.rmdir()  # the project's folder, if this was its first


def _drop_branch(git: GitRun, root: Path, branch: str, base: str) -> None:
    tip = branch_tip(git, root, branch)
    if tip and not git.read(root, "merge-base", "--is-ancestor", tip, base, accept=(0, 1, 128)).status:
        git.write(root, "update-ref", "--no-deref", "-d", f"refs/heads/{branch}", tip)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Merge an instance's branch into the main checkout, or leave that exactly as it was."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError
from ccorchd.gitwork import work
from ccorchd.gitwork.layout import branch_tip, git_folders
from ccorchd.gitwork.process import GitRun, failure

_UNDER_WAY: Final = {
    "MERGE_HEAD": "merge",
    "CHERRY_PICK_HEAD": "cherry-pick",
    "REVERT_HEAD": "revert",
    "rebase-merge": "rebase",
    "rebase-apply": "rebase",
}


def merge(git: GitRun, root: Path, branch: str, *, timeout: float) -> str:
    """Merge *branch* into the branch that *root* has checked out; return the commit that this then stands on.

    Fast-forward where possible, else a merge commit in the user's name. Raise ``WorktreeDirty`` for uncommitted changes
    (untracked files do not matter unless the merge would overwrite them), ``MergeConflict`` naming the files,
    ``WrongState`` when *root* is on no branch or has an operation under way.
    """
    tip = branch_tip(git, root, branch)
    if tip is None:
        raise CcorchError(ErrorCode.INVALID_ARGUMENT, f"there is no branch {branch} in {root}")
    found = _ready(git, root)
    if _contains(git, root, found.head, tip):
        return found.head
    if not _contains(git, root, tip, found.head):
        _check_conflicts(git, root, branch, found)
    answer = git.write(
        root,
        *("merge", "--quiet", "--ff", "--commit", "--no-squash", "--no-edit", "--no-autostash", "--no-stat"),
        *("--", branch),
        accept=None,
        timeout=timeout,
    )
    if answer.status == 0:
        return git.read(root, "rev-parse", "--verify", "HEAD").text
    folders = git_folders(root)
    if folders and (folders.private / "MERGE_HEAD").exists():
        git.write(root, "merge", "--abort")
    if "would be overwritten by merge" in answer.errors:
        files = [line.strip() for line in answer.errors.splitlines() if line.startswith("\t")]
        raise CcorchError(
            ErrorCode.WORKTREE_DIRTY,
            f"the merge of {branch} would overwrite files in {root}: {work.show_paths(files)}",
            "Move them away or commit them, then merge again.",
        )
    if "Not committing merge" in answer.errors:
        said = [line for line in answer.errors.splitlines() if line.strip() and "Not committing merge" not in line]
        raise CcorchError(
            ErrorCode.GIT_FAILED,
            f"a hook of {root} refused to merge {branch}: {said[-1].strip() if said else 'it gave no reason'}",
            f"It is one of pre-merge-commit, prepare-commit-msg and commit-msg; see git -C {root} merge {branch}",
        )
    raise failure(answer, root)


def _ready(git: GitRun, root: Path) -> work.Status:
    folders = git_folders(root)
    for name, operation in _UNDER_WAY.items() if folders else ():
        if folders and os.path.lexists(folders.private / name):
            raise CcorchError(
                ErrorCode.WRONG_STATE,
                f"a {operation} is under way in {root}",
                f"Finish it, or call it off: git -C {root} {operation} --abort",
            )
    found = work.status(git, root, untracked=False, submodules="dirty")
    if found.branch is None or not found.head:
        raise CcorchError(
            ErrorCode.WRONG_STATE,
            f"{root} is on no branch, so there is nothing to merge into",
            f"git -C {root} switch BRANCH",
        )
    if found.changed:
        raise CcorchError(
            ErrorCode.WORKTREE_DIRTY,
            f"{root} has uncommitted changes: {work.show_paths(found.changed)}",
            f"Commit them, or put them away: git -C {root} stash",
        )
    return found


def _check_conflicts(git: GitRun, root: Path, branch: str, found: work.Status) -> None:
    """Try the merge without touching a file (git-merge-tree(1)); raise ``MergeConflict`` if it is not clean."""
    trial = git.write(
        root,
        *("merge-tree", "--write-tree", "-z", "--name-only", "--no-messages", found.head, f"refs/heads/{branch}"),
        accept=(0, 1),
    )
    if trial.status == 1:
        files = [os.fsdecode(name) for name in trial.fields[1:] if name]
        raise CcorchError(
            ErrorCode.MERGE_CONFLICT,
            f"{branch} conflicts with {found.branch} in {work.show_paths(files, 20)}",
            f"Have the instance merge {found.branch} into its branch and settle the conflicts, then merge again.",
        )


def _contains(git: GitRun, root: Path, commit: str, tip: str) -> bool:
    return git.read(root, "merge-base", "--is-ancestor", tip, commit, accept=(0, 1)).status == 0

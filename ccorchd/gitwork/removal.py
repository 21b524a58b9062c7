# SPDX-License-Identifier: LGPL-2.1-or-later
"""Remove a worktree. Nothing that holds work is deleted: it is refused, or kept under a ref or in a folder.

The folder is renamed away before anything is deleted, so that an interrupted removal never leaves half a worktree that
looks like somebody's uncommitted deletions.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError
from ccorchd.gitwork import work
from ccorchd.gitwork.disposal import discard, set_aside
from ccorchd.gitwork.layout import Folders, branch_tip, checkouts, git_folders, registration
from ccorchd.gitwork.process import GitRun

_log: Final = logging.getLogger(__name__)
_WAS: Final = re.compile(r"\(was ([0-9a-f]+)\)")


@dataclass(frozen=True, slots=True)
class Removed:
    """What became of a worktree's work.

    ``kept_ref``: refs with its uncommitted state, separated by blanks. ``kept_folder``: where files lie that no commit
    can hold, or that could not be deleted. Both are empty when there was nothing to keep.
    """

    branch_deleted: bool
    kept_ref: str
    kept_folder: str = ""


@dataclass(frozen=True, slots=True)
class _Target:
    """A worktree about to go; ``folders`` is None when git does not know it, ``present``: its folder is there."""

    path: Path
    label: str
    found: work.Status
    folders: Folders | None
    present: bool
    private: tuple[str, ...]

    @property
    def stray(self) -> bool:
        """A folder that is no worktree of the repository (any more): only its owner can say what it holds."""
        return self.folders is None and self.present


def remove(
    git: GitRun, root: Path, path: Path, branch: str, base_commit: str, *, force: bool, removed: Path
) -> Removed:
    """Remove the worktree at *path*, worktrees inside it too, then *branch* if that holds nothing of its own.

    Without *force* raise ``WorktreeDirty`` when there is anything that only this worktree holds: uncommitted or
    untracked files, commits on a detached HEAD, a clone or submodule with commits that are nowhere else. With it, all
    that is kept. Ignored files go.
    """
    if git_folders(root) is None:
        return _without_repository(root, path, branch or path.name, force, removed)
    refs, kept_folder = [], ""
    for target in _targets(git, root, path, branch or path.name, force=force):
        ref, folder = _take_away(git, root, target, removed)
        refs += [ref] if ref else []
        kept_folder = folder or kept_folder
    deleted = _delete_branch(git, root, branch, base_commit) if branch else False
    return Removed(deleted, " ".join(refs), kept_folder)


def check(git: GitRun, root: Path, path: Path, branch: str) -> None:
    """Raise what :func:`remove` without force would raise; change nothing."""
    if git_folders(root) is not None:
        _targets(git, root, path, branch or path.name, force=False)
    elif os.path.lexists(path):
        _without_repository(root, path, branch or path.name, False, path)


def _targets(git: GitRun, root: Path, path: Path, label: str, *, force: bool) -> list[_Target]:
    """Return what has to go, in that order; without *force* raise if any of it holds work."""
    place = path.resolve()
    entries = checkouts(git, root)
    if root.resolve().is_relative_to(place) or entries[0].path.resolve().is_relative_to(place):
        raise CcorchError(ErrorCode.INVALID_ARGUMENT, f"{path} holds the main checkout, which is not ours to remove")
    inside = [entry for entry in entries[1:] if entry.path.resolve().is_relative_to(place)]
    inside.sort(key=lambda entry: len(entry.path.parts), reverse=True)  # the innermost first, the worktree itself last
    own = [entry for entry in inside if entry.path.resolve() == place]
    if not force and any(entry.locked for entry in inside):
        raise CcorchError(
            ErrorCode.WRONG_STATE, f"the worktree {path} is locked", f"git -C {root} worktree unlock {path}"
        )

    nested = [entry.path.resolve() for entry in inside if entry not in own]
    targets = [_examine(git, root, entry.path, entry.branch or "", entry.head, nested) for entry in inside]
    if not own and os.path.lexists(path):
        targets.append(_Target(path, label, work.Status("", None, (), (), ()), None, True, ()))
    if not force:
        for target in targets:
            _refuse_work(git, root, target)
    return targets


def _without_repository(root: Path, path: Path, label: str, force: bool, removed: Path) -> Removed:
    if not os.path.lexists(path):
        return Removed(False, "")
    if not force:
        raise CcorchError(
            ErrorCode.NOT_A_REPOSITORY,
            f"the repository {root} is gone, so nobody can tell what the worktree {path} holds",
            "Bring it back, or use --force, which moves the files away.",
        )
    return Removed(False, "", str(set_aside(path, removed, label.replace("/", "-"))))


def _examine(git: GitRun, root: Path, path: Path, branch: str, head: str, nested: list[Path]) -> _Target:
    label = branch or path.name
    present = os.path.lexists(path)
    folders = git_folders(path) if present else None
    main = git_folders(root)
    assert main is not None
    registered = registration(main.common, path)
    if present and (folders is None or registered is None or folders.private != registered.resolve()):
        return _Target(path, label, work.Status(head, branch or None, (), (), ()), None, True, ())
    if not present:
        found = work.Status(head, branch or None, (), (), ())
        return _Target(path, label, found, Folders(registered, main.common) if registered else None, False, ())
    found = work.status(git, path)
    own = tuple(name for name in found.repositories if (path / name).resolve() not in nested)
    found = work.Status(found.head, found.branch, found.changed, found.untracked, own)
    return _Target(path, label, found, folders, True, tuple(work.private_repositories(git, path, found)))


def _refuse_work(git: GitRun, root: Path, target: _Target) -> None:
    keeps = f"--force keeps it under {work.KEPT}"
    if target.stray:
        if target.path.is_dir() and not target.path.is_symlink() and not any(target.path.iterdir()):
            return
        raise CcorchError(
            ErrorCode.WORKTREE_DIRTY,
            f"{target.path} is no worktree of {root} any more, so nobody can tell what it holds",
            f"git -C {root} worktree repair {target.path} may help; --force moves the files away.",
        )
    if target.found.dirty:
        raise CcorchError(
            ErrorCode.WORKTREE_DIRTY,
            f"the worktree {target.path} has uncommitted work: {work.show_paths(target.found.paths)}",
            f"Commit it first; {keeps}",
        )
    if target.private:
        raise CcorchError(
            ErrorCode.WORKTREE_DIRTY,
            f"the worktree {target.path} has repositories with commits of their own: {work.show_paths(target.private)}",
            "Push them first; --force moves the folder away instead of deleting it.",
        )
    detached = target.present and target.found.branch is None and target.found.head
    if detached and not work.is_held(git, root, target.found.head):
        raise CcorchError(
            ErrorCode.WORKTREE_DIRTY,
            f"the worktree {target.path} has commits that are on no branch",
            f"git -C {target.path} switch -c NAME gives them one; {keeps}",
        )


def _take_away(git: GitRun, root: Path, target: _Target, removed: Path) -> tuple[str, str]:
    """Keep what the target holds, then remove it; return the ref and the folder where something was kept, or ""."""
    ref, folder = "", ""
    if target.folders is not None:
        checkout = target.path if target.present else None
        ref = work.keep(git, root, checkout, target.folders, target.found, target.label)
        if target.private:
            work.make_standalone(git, target.path, target.folders, list(target.private))
    if target.present:
        aside = set_aside(target.path, removed, target.label.replace("/", "-"))
        link = aside / ".git"
        if target.stray and aside.is_dir() and any(aside.iterdir()):
            folder = str(aside)
        elif target.private:
            link.unlink(missing_ok=True)  # it names a git folder that is about to go
            folder = str(aside)
        else:
            try:
                discard(aside)
            except OSError as error:
                _log.warning("cannot delete all of %s: %s", aside, error)
                folder = str(aside)
    git.write(root, "worktree", "remove", "--force", "--force", "--", str(target.path), accept=(0, 128))
    return ref, folder


def _delete_branch(git: GitRun, root: Path, branch: str, base_commit: str) -> bool:
    """Delete *branch* if all it has is in the main checkout's HEAD, in its upstream, or was there before it."""
    tip = branch_tip(git, root, branch)
    if not tip or any(entry.branch == branch for entry in checkouts(git, root)):
        return False
    if not _merged(git, root, branch, tip, base_commit):
        return False
    answer = git.write(root, "branch", "--delete", "--force", "--", branch, accept=None)
    was = _WAS.search(answer.text)
    if answer.status == 0 and was and not tip.startswith(was[1]):  # somebody moved it since we looked
        git.write(root, "update-ref", f"refs/heads/{branch}", was[1], "")
        return False
    return answer.status == 0


def _merged(git: GitRun, root: Path, branch: str, tip: str, base_commit: str) -> bool:
    upstream = git.read(root, "for-each-ref", "--format=%(upstream)", f"refs/heads/{branch}").text
    for commit in ("HEAD", upstream):
        if commit and _contains(git, root, commit, tip):
            return True
    if not base_commit or not _contains(git, root, base_commit, tip):
        return False
    # Nothing of its own; but its base may have been deleted meanwhile, and this be the last name of those commits.
    holders = git.read(root, "for-each-ref", "--count=2", "--format=%(refname)", "--contains", tip).text.split("\n")
    return any(ref and ref != f"refs/heads/{branch}" for ref in holders)


def _contains(git: GitRun, root: Path, commit: str, tip: str) -> bool:
    return git.read(root, "merge-base", "--is-ancestor", tip, commit, accept=(0, 1, 128)).status == 0

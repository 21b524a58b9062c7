# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a worktree holds that is nowhere else, and how it is kept under a ref before the worktree goes."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError
from ccorchd.gitwork.layout import Folders
from ccorchd.gitwork.process import GitRun

KEPT: Final = "refs/ccorch/removed/"

_IDENTITY: Final = {
    "GIT_AUTHOR_NAME": "ccorch",
    "GIT_AUTHOR_EMAIL": "ccorch@localhost",
    "GIT_COMMITTER_NAME": "ccorch",
    "GIT_COMMITTER_EMAIL": "ccorch@localhost",
}


@dataclass(frozen=True, slots=True)
class Status:
    """State of a checkout: its commit ("" without any), branch (None: detached), changed and untracked paths.

    ``repositories`` are untracked folders with a repository of their own; no commit of ours can hold their content.
    """

    head: str
    branch: str | None
    changed: tuple[str, ...]
    untracked: tuple[str, ...]
    repositories: tuple[str, ...]

    @property
    def dirty(self) -> bool:
        return bool(self.changed or self.untracked or self.repositories)

    @property
    def paths(self) -> tuple[str, ...]:
        return (*self.changed, *self.untracked, *self.repositories)


def status(git: GitRun, checkout: Path, *, untracked: bool = True, submodules: str = "none") -> Status:
    """Read the state of *checkout*. *submodules* is what to ignore of them (``--ignore-submodules``)."""
    answer = git.read(
        checkout,
        *("status", "--porcelain=v2", "--branch", "-z", "--no-renames"),
        f"--untracked-files={'all' if untracked else 'no'}",
        f"--ignore-submodules={submodules}",
        timeout=120,
    )
    head, branch = "", None
    changed: list[str] = []
    others: list[str] = []
    repositories: list[str] = []
    for record in answer.fields:
        line = os.fsdecode(record)
        if line.startswith("# branch.oid "):
            head = line.removeprefix("# branch.oid ").replace("(initial)", "")
        elif line.startswith("# branch.head "):
            name = line.removeprefix("# branch.head ")
            branch = None if name == "(detached)" else name
        elif line.startswith("1 "):
            changed.append(line.split(" ", 8)[8])
        elif line.startswith("u "):
            changed.append(line.split(" ", 10)[10])
        elif line.startswith("? "):
            (repositories if line.endswith("/") else others).append(line[2:])
    return Status(head, branch, tuple(changed), tuple(others), tuple(repositories))


def show_paths(paths: tuple[str, ...] | list[str], most: int = 5) -> str:
    """Return the first paths as a line for people."""
    shown = [path.encode("utf-8", "replace").decode().replace("\n", "?") for path in paths[:most]]
    rest = len(paths) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest > 0 else "")


def private_repositories(git: GitRun, checkout: Path, found: Status) -> list[str]:
    """Return the folders in *checkout* with a repository of their own that has commits no remote has.

    These are untracked clones, and submodules with commits that were not pushed.
    """
    private = list(found.repositories)
    for record in git.read(checkout, "ls-files", "--stage", "-z").fields:
        if not record.startswith(b"160000 "):
            continue
        name = os.fsdecode(record.partition(b"\t")[2])
        inner = checkout / name
        if not os.path.lexists(inner / ".git"):
            continue
        unpushed = git.read(inner, "rev-list", "--max-count=1", "--all", "HEAD", "--not", "--remotes", accept=(0, 128))
        # Without any commit, or unreadable: rather kept than lost.
        if unpushed.status or unpushed.output or name in found.changed:
            private.append(name)
    return private


def is_held(git: GitRun, root: Path, commit: str) -> bool:
    """Return whether any ref of the repository at *root* holds *commit*."""
    answer = git.read(root, "for-each-ref", "--count=1", "--format=%(refname)", "--contains", commit, accept=(0, 129))
    return bool(answer.output.strip())


def keep(git: GitRun, root: Path, checkout: Path | None, folders: Folders, found: Status, label: str) -> str:
    """Keep the state of *checkout* under a new ref in :data:`KEPT`, and return the ref; "" when all of it is held.

    The commit has the worktree's files, untracked ones with them, ignored ones not. Its first parent is the commit that
    was checked out; the second, where the index held something different, is the index. With *checkout* None (its
    folder is gone) there is only the index. The worktree's own index is left as it is.
    """
    scratch = folders.private / "ccorch-index"
    index = folders.private / "index"
    environment = {**_IDENTITY, "GIT_INDEX_FILE": str(scratch)}
    if checkout is None:
        environment["GIT_DIR"] = str(folders.private)
    where = checkout or root
    try:
        if index.exists():
            shutil.copy2(index, scratch)
        head_tree = git.read(root, "rev-parse", "--verify", f"{found.head}^{{tree}}").text if found.head else ""
        staged = git.write(where, "write-tree", environment=environment, accept=(0, 128)) if index.exists() else None
        staged_tree = staged.text if staged and not staged.status else ""  # a conflict cannot be written as a tree
        tree = staged_tree
        if checkout is not None and found.dirty:
            specs = [".", *(f":(exclude,literal){name.rstrip('/')}" for name in found.repositories)]
            git.write(
                checkout,
                *("add", "--all", "--sparse", "--pathspec-from-file=-", "--pathspec-file-nul"),
                stdin=b"".join(os.fsencode(spec) + b"\0" for spec in specs),
                environment=environment,
            )
            tree = git.write(checkout, "write-tree", environment=environment).text
        parents = [found.head] if found.head else []
        if staged_tree and staged_tree not in (tree, head_tree):
            parents.append(_commit(git, root, staged_tree, parents, f"Index of {label} when its worktree was removed"))
        commit = found.head
        if tree and (tree != head_tree or len(parents) > 1):
            commit = _commit(git, root, tree, parents, f"State of {label} when its worktree was removed")
        elif not commit or is_held(git, root, commit):
            return ""
    finally:
        scratch.unlink(missing_ok=True)
    return _new_ref(git, root, label, commit)


def _commit(git: GitRun, root: Path, tree: str, parents: list[str], message: str) -> str:
    words = [word for parent in parents for word in ("-p", parent)]
    return git.write(
        root, "commit-tree", *words, "-F", "-", tree, stdin=f"{message}\n".encode(), environment=_IDENTITY
    ).text


def _new_ref(git: GitRun, root: Path, label: str, commit: str) -> str:
    stem = f"{KEPT}{label}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    for number in range(100):
        ref = stem if not number else f"{stem}-{number}"
        # The empty old value: only if there is no such ref (git-update-ref(1)).
        answer = git.write(root, "update-ref", ref, commit, "", accept=(0, 128), environment=_IDENTITY)
        if answer.status == 0:
            return ref
        if "reference already exists" not in answer.errors:
            break
    raise CcorchError(ErrorCode.GIT_FAILED, f"git could not keep the state as {stem}: {answer.errors.strip()}")


def make_standalone(git: GitRun, checkout: Path, folders: Folders, names: list[str]) -> None:
    """Give each submodule in *names* the git folder that it has inside *folders*, which is about to go."""
    for name in names:
        link = checkout / name / ".git"
        if not link.is_file():
            continue
        source = (link.parent / os.fsdecode(link.read_bytes()).removeprefix("gitdir:").strip()).resolve()
        if not source.is_relative_to(folders.private):
            continue
        moved = link.with_name(".git.moved")
        shutil.move(source, moved)
        link.unlink()
        moved.rename(link)
        git.write(checkout, "config", "--file", str(link / "config"), "--unset", "core.worktree", accept=(0, 5))

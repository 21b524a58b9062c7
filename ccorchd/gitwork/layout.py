# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where a repository keeps what: its checkouts, their private folders, its refs.

Launching an instance should cost one git process, so the few facts that it needs are read from the files that
gitrepository-layout(5) describes; where a repository stores them in another way, git is asked.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError
from ccorchd.gitwork.process import GitRun

_OBJECT: Final = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?\Z")


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository by its main checkout: the commit it stands on, and its branch (None when HEAD is detached)."""

    root: Path
    head: str
    branch: str | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One checkout as git lists it. ``branch`` is None when HEAD is detached, ``head`` is empty without commits."""

    path: Path
    head: str
    branch: str | None
    bare: bool
    locked: bool


def checkouts(git: GitRun, where: Path) -> list[Entry]:
    """Return all checkouts of the repository that *where* is in, the main one first."""
    entries = []
    for block in git.read(where, "worktree", "list", "--porcelain", "-z").output.split(b"\0\0"):
        facts = {}
        for line in block.split(b"\0"):
            key, _, value = line.partition(b" ")
            facts[key] = value
        if b"worktree" not in facts:
            continue
        head = facts.get(b"HEAD", b"").decode()
        branch = os.fsdecode(facts[b"branch"]).removeprefix("refs/heads/") if b"branch" in facts else None
        entries.append(
            Entry(
                path=Path(os.fsdecode(facts[b"worktree"])),
                head=head if head.strip("0") else "",
                branch=branch,
                bare=b"bare" in facts,
                locked=b"locked" in facts,
            )
        )
    return entries


def locate(git: GitRun, where: Path) -> Repository:
    """Return the repository that *where* is in, by its main checkout; *where* may be a linked worktree or a subfolder.

    Raise ``NotARepository`` (no folder, no repository, bare, or no main checkout to be found), ``NoCommits``, or
    ``NotAllowed`` when the repository belongs to somebody git does not trust.
    """
    try:
        where = where.resolve(strict=True)
        folder = where.is_dir()
    except OSError as error:
        raise CcorchError(ErrorCode.NOT_A_REPOSITORY, f"{where} cannot be opened: {error.strerror}") from error
    if not folder:
        raise CcorchError(ErrorCode.NOT_A_REPOSITORY, f"{where} is no folder")
    main = checkouts(git, where)[0]
    if main.bare:
        raise CcorchError(
            ErrorCode.NOT_A_REPOSITORY,
            f"{main.path} is a bare repository, which has no main checkout",
            f"Clone it, and register the clone: git clone {main.path} FOLDER",
        )
    root = main.path if os.path.lexists(main.path / ".git") else _separate(git, where)
    try:
        str(root).encode()
    except UnicodeEncodeError as error:
        raise CcorchError(
            ErrorCode.INVALID_ARGUMENT, f"the path {os.fsencode(root)!r} is not valid UTF-8", "Rename the folder."
        ) from error
    if not main.head:
        raise CcorchError(
            ErrorCode.NO_COMMITS,
            f"{root} has no commits yet, so there is nothing an instance could start from",
            f"Make a first one: git -C {root} commit --allow-empty -m 'First commit'",
        )
    return Repository(root.resolve(), main.head, main.branch)


def _separate(git: GitRun, where: Path) -> Path:
    """Return the main checkout of a repository whose ``.git`` lies elsewhere (a submodule, ``--separate-git-dir``)."""
    answer = git.read(where, "rev-parse", "--path-format=absolute", "--git-dir", "--git-common-dir", accept=(0, 128))
    git_dir, _, common = os.fsdecode(answer.output).rstrip("\n").partition("\n")
    if git_dir and git_dir == common:
        top = git.read(where, "rev-parse", "--show-toplevel", accept=(0, 128))
        if top.status == 0:
            return Path(os.fsdecode(top.output).rstrip("\n"))
    if common:
        told = git.read(Path(common), "config", "--get", "core.worktree", accept=(0, 1))
        if told.status == 0:
            return Path(common, os.fsdecode(told.output).rstrip("\n"))
    raise CcorchError(
        ErrorCode.NOT_A_REPOSITORY,
        f"the main checkout of the repository at {where} cannot be found",
        "Give the folder of the main checkout.",
    )


@dataclass(frozen=True, slots=True)
class Folders:
    """``private`` is the git folder of one checkout (HEAD, index), ``common`` the repository's (refs, objects)."""

    private: Path
    common: Path


def git_folders(checkout: Path) -> Folders | None:
    """Return the git folders of *checkout*, None if it is no checkout (any more)."""
    try:
        private = checkout / ".git"
        if private.is_file():
            private = checkout / os.fsdecode(private.read_bytes()).removeprefix("gitdir:").strip()
        if not (private / "HEAD").exists():
            return None
        link = private / "commondir"
        common = private / os.fsdecode(link.read_bytes()).strip() if link.exists() else private
    except OSError:
        return None
    return Folders(private.resolve(), common.resolve())


def branch_tip(git: GitRun, root: Path, branch: str) -> str | None:
    """Return the commit id of a local *branch* of the repository at *root*, None if there is no such branch."""
    folders = git_folders(root)
    if folders and not (folders.common / "reftable").exists():
        try:
            tip = (folders.common / "refs/heads" / branch).read_bytes().strip().decode("ascii", "replace")
            if _OBJECT.match(tip):
                return tip
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            if not _packed(folders.common, branch):
                return None
        except OSError:
            pass
    answer = git.read(root, "rev-parse", "--verify", "--quiet", f"refs/heads/{branch}", accept=(0, 1))
    return answer.text if answer.status == 0 else None


def _packed(common: Path, branch: str) -> bool:
    try:
        return b" refs/heads/" + os.fsencode(branch) + b"\n" in (common / "packed-refs").read_bytes()
    except FileNotFoundError:
        return False
    except OSError:
        return True


def registration(common: Path, checkout: Path) -> Path | None:
    """Return the git folder under *common* that is registered for the worktree at *checkout*, which may be gone."""
    try:
        candidates = list((common / "worktrees").iterdir())
    except OSError:
        return None
    for private in candidates:
        try:
            link = Path(private, os.fsdecode((private / "gitdir").read_bytes()).strip())  # may be relative (git 2.48)
        except OSError:
            continue
        if link.parent.resolve() == checkout.resolve():
            return private
    return None

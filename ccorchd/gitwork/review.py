# SPDX-License-Identifier: LGPL-2.1-or-later
"""What an instance has done so far: status, commits and diff of its worktree. Changes nothing that others see."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError
from ccorchd.gitwork import work
from ccorchd.gitwork.layout import branch_tip, git_folders
from ccorchd.gitwork.process import GitRun

DIFF_LIMIT: Final = 4 * 1024**2
"""Bytes; more than a person reads, and far below what a D-Bus message takes."""

_COMMITS: Final = 1000
_NUMBERS: Final = re.compile(r"(\d+) (file|insertion|deletion)")


@dataclass(frozen=True, slots=True)
class WorktreeStatus:
    """``ahead``: commits that the base lacks; ``behind``: commits of the base that are missing here.

    The numbers of changes count from the commit the instance started at, uncommitted and untracked files included.
    ``missing``: the folder is gone, and everything is about the branch. ``head`` is empty when there is neither.
    """

    head: str
    ahead: int
    behind: int
    dirty: bool
    missing: bool
    files_changed: int
    insertions: int
    deletions: int
    branch: str = ""
    """What is checked out now, which an agent can change; empty when HEAD is detached."""


def status(git: GitRun, path: Path, branch: str, base_commit: str, repository: Path, base: str) -> WorktreeStatus:
    """Return the status of the worktree at *path*. The base is the ref *base*, else the main checkout's HEAD."""
    missing = git_folders(path) is None
    if missing:
        head, dirty, current = branch_tip(git, repository, branch) or "", False, branch
    else:
        found = work.status(git, path)
        head, dirty, current = found.head, found.dirty, found.branch or ""
    if not head:
        return WorktreeStatus("", 0, 0, dirty, missing, 0, 0, 0, current)
    behind, ahead = 0, 0
    for other in (base, "HEAD", base_commit):
        if not other:
            continue
        counted = git.read(
            repository,
            *("rev-list", "--count", "--left-right", "--end-of-options", f"{other}...{head}", f"^{base_commit}", "--"),
            accept=(0, 128),
        )
        if counted.status == 0:
            behind, ahead = (int(number) for number in counted.text.split())
            break
    if missing:
        numbers = git.read(repository, "diff", "--shortstat", *_PLAIN, base_commit, head, "--", accept=(0, 128)).text
    else:
        with _with_untracked(git, path) as environment:
            numbers = git.read(
                path, "diff", "--shortstat", *_PLAIN, base_commit, "--", environment=environment, accept=(0, 128)
            ).text
    counts = {what: int(number) for number, what in _NUMBERS.findall(numbers)}
    return WorktreeStatus(
        head=head,
        ahead=ahead,
        behind=behind,
        dirty=dirty,
        missing=missing,
        files_changed=counts.get("file", 0),
        insertions=counts.get("insertion", 0),
        deletions=counts.get("deletion", 0),
        branch=current,
    )


def commits(git: GitRun, where: Path, base_commit: str, branch: str) -> list[tuple[str, str]]:
    """Return ``(id, subject)`` of the commits since *base_commit* on *branch* (HEAD if empty), the newest first."""
    tip = f"refs/heads/{branch}" if branch else "HEAD"
    span = f"{base_commit}..{tip}"
    answer = git.read(where, "log", "-z", f"-{_COMMITS}", "--format=%H%x00%s", span, "--", accept=(0, 128))
    if answer.status:
        raise CcorchError(
            ErrorCode.INVALID_ARGUMENT, f"There are no commits from {base_commit[:12]} to {branch or 'HEAD'} in {where}"
        )
    fields = [field.decode("utf-8", "replace") for field in answer.output.split(b"\0")]
    return list(zip(fields[0::2], fields[1::2], strict=False))


def diff(git: GitRun, path: Path, base_commit: str, branch: str, *, stat: bool) -> str:
    """Return the changes since *base_commit*: those of the files in *path*, or, with *branch*, of its commits only.

    At most :data:`DIFF_LIMIT` bytes; a last line says if there is more.
    """
    form = "--stat=120" if stat else "--patch"
    if branch:
        answer = git.read(
            path, "diff", form, *_PLAIN, base_commit, f"refs/heads/{branch}", "--", limit=DIFF_LIMIT, timeout=120
        )
    elif git_folders(path) is None:
        raise CcorchError(ErrorCode.WRONG_STATE, f"the worktree {path} is gone", "Its branch may still be there.")
    else:
        with _with_untracked(git, path) as environment:
            answer = git.read(
                path,
                *("diff", form, *_PLAIN, base_commit, "--"),
                environment=environment,
                limit=DIFF_LIMIT,
                timeout=120,
            )
    text = answer.output.decode("utf-8", "replace").replace("\0", "\N{SYMBOL FOR NULL}")  # D-Bus strings hold no NUL
    if answer.truncated:
        text += f"\n… only the first {DIFF_LIMIT // 1024**2} MiB are shown; see git -C {path} diff {base_commit}\n"
    return text


_PLAIN: Final = ("--no-color", "--no-ext-diff", "--no-textconv", "--find-renames", "--end-of-options")


@contextmanager
def _with_untracked(git: GitRun, path: Path) -> Iterator[dict[str, str]]:
    """Give the environment for a diff that shows untracked files as new: a copy of the index that names them."""
    listed = git.read(path, "ls-files", "--others", "--exclude-standard", "-z")
    names = [name for name in listed.fields if not name.endswith(b"/")]
    folders = git_folders(path)
    if not names or folders is None:
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="ccorch-index-") as folder:
        index = Path(folder, "index")
        if (folders.private / "index").exists():
            shutil.copy2(folders.private / "index", index)
            # A split index names its other half relative to itself.
            for shared in folders.private.glob("sharedindex.*"):
                os.symlink(shared, index.with_name(shared.name))
        environment = {"GIT_INDEX_FILE": str(index), "GIT_LITERAL_PATHSPECS": "1"}
        git.read(
            path,
            *("add", "--intent-to-add", "--sparse", "--ignore-errors"),
            *("--pathspec-from-file=-", "--pathspec-file-nul"),
            stdin=b"".join(name + b"\0" for name in names),
            environment=environment,
            accept=(0, 1, 128),  # a file may be gone again since it was listed: agents are at work
        )
        yield environment

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Repositories that are laid out in another way than a plain clone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError
from ccorchd.gitwork.layout import branch_tip, git_folders, registration
from ccorchd.gitwork.process import GitRun
from ccorchd.worktrees import Worktrees


async def test_a_worktree_of_a_submodule_leads_to_the_submodule(
    main: Any, checkout: Any, worktrees: Worktrees, tmp_path: Path
) -> None:
    library = checkout(tmp_path / "library")
    library.path.mkdir()
    library.git("init", "-q")
    library.commit("x", "x")
    main.git("submodule", "--quiet", "add", str(library.path), "sub")
    inner = checkout(main.path / "sub")
    linked = tmp_path / "linked"
    inner.git("worktree", "add", "-q", str(linked))
    assert (await worktrees.repository(linked)).root == inner.path


async def test_a_main_checkout_that_nothing_names_is_asked_for(
    main: Any, checkout: Any, worktrees: Worktrees, tmp_path: Path
) -> None:
    separate = checkout(tmp_path / "separate")
    separate.path.mkdir()
    separate.git("init", "-q", f"--separate-git-dir={tmp_path / 'elsewhere'}")
    separate.commit("x", "x")
    linked = tmp_path / "linked"
    separate.git("worktree", "add", "-q", str(linked))
    if separate.git("config", "--default", "", "--get", "core.worktree"):
        separate.git("config", "--unset", "core.worktree")
    for place in (linked, tmp_path / "elsewhere"):
        with pytest.raises(CcorchError, match=r"main checkout of the repository at .* cannot be found") as caught:
            await worktrees.repository(place)
        assert caught.value.code is ErrorCode.NOT_A_REPOSITORY


def test_a_branch_that_is_another_name_of_one_has_its_commit(main: Any) -> None:
    main.git("symbolic-ref", "refs/heads/alias", "refs/heads/main")
    assert branch_tip(GitRun(), main.path, "alias") == main.git("rev-parse", "main")


def test_the_tip_of_a_branch_is_found_wherever_git_keeps_it(main: Any) -> None:
    main.git("branch", "topic")
    main.git("pack-refs", "--all")
    assert branch_tip(GitRun(), main.path, "topic") == main.git("rev-parse", "main")
    assert branch_tip(GitRun(), main.path, "absent") is None
    # No checkout at all, but a repository: git is asked.
    assert branch_tip(GitRun(), main.path / ".git", "topic") == main.git("rev-parse", "main")


def test_only_the_worktrees_own_registration_is_found(main: Any, tmp_path: Path) -> None:
    main.git("worktree", "add", "-q", str(tmp_path / "one"))
    folders = git_folders(main.path)
    assert folders is not None
    assert registration(folders.common, tmp_path / "one") == folders.common / "worktrees/one"
    assert registration(folders.common, tmp_path / "two") is None
    (folders.common / "worktrees/one/gitdir").unlink()
    assert registration(folders.common, tmp_path / "one") is None

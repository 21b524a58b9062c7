# SPDX-License-Identifier: LGPL-2.1-or-later
"""Corners of making, reviewing and removing a worktree: names in the way, odd indexes, cancelled changes."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError
from ccorchd.gitwork import work
from ccorchd.gitwork.layout import git_folders
from ccorchd.gitwork.process import GitRun
from ccorchd.worktrees import Worktrees

ABSENT = "0123456789" * 4


def state(main: Any, label: str) -> str:
    folders = git_folders(main.path)
    assert folders is not None
    run = GitRun()
    return work.keep(run, main.path, main.path, folders, work.status(run, main.path), label)


def test_states_kept_in_one_second_never_replace_each_other(main: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work.time, "strftime", lambda *_: "20260101T000000Z")
    kept = []
    for text in ("two\n", "three\n", "four\n"):
        (main.path / "a.txt").write_text(text)
        kept.append(state(main, "amber"))
    assert len(set(kept)) == 3
    assert [main.git("show", f"{ref}:a.txt") for ref in kept] == ["two", "three", "four"]


def test_a_state_that_cannot_be_kept_is_an_error(main: Any) -> None:
    main.git("update-ref", "refs/ccorch/removed/team", "HEAD")
    (main.path / "a.txt").write_text("two\n")
    with pytest.raises(CcorchError, match="git could not keep the state as refs/ccorch/removed/team/amber-") as caught:
        state(main, "team/amber")
    assert caught.value.code is ErrorCode.GIT_FAILED
    assert not (main.path / ".git/ccorch-index").exists()


async def test_a_worktree_without_an_index_is_kept_and_shown(worktrees: Worktrees, main: Any, worktree: Any) -> None:
    base = main.git("rev-parse", "HEAD")
    (main.path / ".git/worktrees/amber/index").unlink()
    (worktree.path / "new.txt").write_text("new\n")
    assert "+new" in await worktrees.diff(worktree.path, base)
    removed = await worktrees.remove(main.path, worktree.path, "ccorch/amber", base, force=True)
    assert main.git("show", f"{removed.kept_ref}:new.txt") == "new"
    assert main.git("show", f"{removed.kept_ref}:a.txt") == "one"


async def test_untracked_files_show_beside_a_split_index(worktrees: Worktrees, main: Any, worktree: Any) -> None:
    worktree.git("update-index", "--split-index")
    assert list((main.path / ".git/worktrees/amber").glob("sharedindex.*"))
    (worktree.path / "new.txt").write_text("new\n")
    shown = await worktrees.diff(worktree.path, main.git("rev-parse", "HEAD"))
    assert "+new" in shown
    assert "a.txt" not in shown
    assert worktree.git("status", "--porcelain") == "?? new.txt"


async def test_a_status_without_a_known_base_still_tells_what_is_there(
    worktrees: Worktrees, main: Any, worktree: Any
) -> None:
    (worktree.path / "new.txt").write_text("new\n")
    found = await worktrees.status(worktree.path, "ccorch/amber", ABSENT, main.path)
    assert (found.head, found.dirty, found.branch) == (main.git("rev-parse", "HEAD"), True, "ccorch/amber")
    assert (found.ahead, found.behind, found.files_changed) == (0, 0, 0)


async def test_a_submodule_that_was_never_fetched_holds_nothing(
    worktrees: Worktrees, main: Any, checkout: Any, tmp_path: Path
) -> None:
    library = checkout(tmp_path / "library")
    library.path.mkdir()
    library.git("init", "-q")
    library.commit("x", "x")
    main.git("submodule", "--quiet", "add", str(library.path), "sub")
    main.git("commit", "-q", "-m", "Add a submodule")
    path = worktrees.path_for("demo", "amber")
    base = await worktrees.create(main.path, path, "ccorch/amber", "")
    await worktrees.check_removable(main.path, path, "ccorch/amber")
    removed = await worktrees.remove(main.path, path, "ccorch/amber", base)
    assert (removed.branch_deleted, removed.kept_ref, removed.kept_folder) == (True, "", "")


async def test_a_clone_with_its_git_folder_elsewhere_keeps_it(
    worktrees: Worktrees, main: Any, checkout: Any, worktree: Any, tmp_path: Path
) -> None:
    main.git(
        "clone", "-q", f"--separate-git-dir={tmp_path / 'elsewhere'}", str(main.path), str(worktree.path / "clone")
    )
    head = main.git("rev-parse", "HEAD")
    removed = await worktrees.remove(main.path, worktree.path, "ccorch/amber", head, force=True)
    kept = checkout(Path(removed.kept_folder) / "clone")
    assert kept.git("rev-parse", "HEAD") == head
    assert (tmp_path / "elsewhere/HEAD").exists()


async def test_without_a_branch_only_the_folder_goes(worktrees: Worktrees, main: Any, worktree: Any) -> None:
    await worktrees.check_removable(main.path, worktree.path, "")
    assert not (await worktrees.remove(main.path, worktree.path, "", "")).branch_deleted
    assert not worktree.path.exists()
    assert main.git("branch", "--list", "ccorch/amber")


async def test_a_gone_repository_allows_only_what_loses_nothing(worktrees: Worktrees, main: Any, worktree: Any) -> None:
    main.path.rename(main.path.with_name("moved"))
    with pytest.raises(CcorchError) as caught:
        await worktrees.check_removable(main.path, worktree.path, "ccorch/amber")
    assert caught.value.code is ErrorCode.NOT_A_REPOSITORY
    assert (worktree.path / "a.txt").exists()
    await worktrees.check_removable(main.path, worktree.path.with_name("absent"), "ccorch/absent")


async def test_an_empty_folder_that_git_does_not_know_goes_without_force(
    worktrees: Worktrees, main: Any, worktree: Any
) -> None:
    main.git("worktree", "remove", str(worktree.path))
    worktree.path.mkdir()
    removed = await worktrees.remove(main.path, worktree.path, "ccorch/amber", "")
    assert removed.kept_folder == ""
    assert not worktree.path.exists()


async def test_a_hook_that_deletes_the_branch_leaves_no_worktree(worktrees: Worktrees, main: Any) -> None:
    main.hook("post-checkout", "git update-ref -d refs/heads/ccorch/amber")
    path = worktrees.path_for("demo", "amber")
    with pytest.raises(CcorchError, match="without its branch ccorch/amber") as caught:
        await worktrees.create(main.path, path, "ccorch/amber", "")
    assert caught.value.code is ErrorCode.GIT_FAILED
    assert not path.exists()
    assert main.git("worktree", "list").count("\n") == 0


async def test_a_relative_path_is_refused(worktrees: Worktrees, main: Any) -> None:
    with pytest.raises(CcorchError, match="no absolute path") as caught:
        await worktrees.create(main.path, Path("amber"), "ccorch/amber", "")
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT


async def test_patterns_that_match_nothing_copy_nothing(worktrees: Worktrees, main: Any, worktree: Any) -> None:
    (main.path / ".worktreeinclude").write_text("*.env\n")
    assert await worktrees.include(main.path, worktree.path) == []


async def test_nothing_is_copied_into_what_some_take_for_a_git_folder(
    worktrees: Worktrees, main: Any, worktree: Any
) -> None:
    for folder in (".GIT/hooks", "inner"):
        (main.path / folder).mkdir(parents=True)
        (main.path / folder / "key.env").write_text("secret\n")
    (main.path / ".worktreeinclude").write_text("*.env\n")
    assert await worktrees.include(main.path, worktree.path) == ["inner/key.env"]
    assert not (worktree.path / ".GIT").exists()


async def test_a_worktree_that_is_gone_cannot_be_filled(worktrees: Worktrees, main: Any, worktree: Any) -> None:
    (main.path / ".worktreeinclude").write_text("*.env\n")
    (main.path / "key.env").write_text("secret\n")
    git_file = (worktree.path / ".git").read_bytes()
    aside = worktree.path.with_name("aside")
    worktree.path.rename(aside)
    worktree.path.symlink_to(aside)
    assert (worktree.path / ".git").read_bytes() == git_file
    with pytest.raises(CcorchError) as caught:
        await worktrees.include(main.path, worktree.path)
    assert caught.value.code is ErrorCode.HOST_FAILED
    assert not (aside / "key.env").exists()


async def test_a_data_folder_that_cannot_be_made_is_an_error_of_the_host(main: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    data = tmp_path / "file/data"
    with pytest.raises(CcorchError, match=f"{data} cannot be used: Not a directory") as caught:
        await Worktrees(data).create(main.path, tmp_path / "amber", "ccorch/amber", "")
    assert caught.value.code is ErrorCode.HOST_FAILED


async def test_a_cancelled_merge_is_completed_first(
    worktrees: Worktrees, main: Any, worktree: Any, tmp_path: Path
) -> None:
    worktree.commit("b.txt", "two\n")
    reached, go = tmp_path / "reached", tmp_path / "go"
    os.mkfifo(reached)
    os.mkfifo(go)
    main.hook("post-merge", f"echo x >'{reached}'; read line <'{go}'")
    merging = asyncio.create_task(worktrees.merge(main.path, "ccorch/amber"))
    assert await asyncio.to_thread(reached.read_text) == "x\n"
    for _ in range(2):
        merging.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        assert not merging.done()
    await asyncio.to_thread(go.write_text, "x\n")
    with pytest.raises(asyncio.CancelledError):
        await merging
    assert main.git("rev-parse", "main") == main.git("rev-parse", "ccorch/amber")
    assert main.git("status", "--porcelain") == ""


@pytest.mark.parametrize("text", ["", "main", "0123ab", "--all"])
async def test_commits_are_counted_from_a_commit_id_only(worktrees: Worktrees, main: Any, text: str) -> None:
    with pytest.raises(CcorchError, match="is no commit id") as caught:
        await worktrees.commits(main.path, text)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT

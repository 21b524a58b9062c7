# SPDX-License-Identifier: LGPL-2.1-or-later
"""Registering and finding projects, and what the verbs of instances refuse."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ccorchd import config, creation
from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError
from ccorchd.storage import Store


def git(folder: Path, *words: str, stdin: str = "") -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], input=stdin, capture_output=True, text=True, check=True)
    return done.stdout.strip()


async def test_registering_again_gives_the_same_project(core: Any) -> None:
    inside = core.repository / "src"
    inside.mkdir()
    known = core.orchestrator.project("sample")
    for name in ("", "sample"):
        assert await core.orchestrator.register(str(inside), name, actor="test") == known
    with pytest.raises(CcorchError, match="is registered already, as 'sample'") as caught:
        await core.orchestrator.register(str(inside), "other", actor="test")
    assert caught.value.code is ErrorCode.PROJECT_EXISTS
    assert [event.kind for event in core.heard].count("project.registered") == 1


async def test_only_an_absolute_path_is_registered(core: Any) -> None:
    with pytest.raises(CcorchError, match="no absolute path") as caught:
        await core.orchestrator.register("sample", "", actor="test")
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT


async def test_a_project_that_was_forgotten_is_not_found_by_its_number(core: Any) -> None:
    project = core.orchestrator.project("sample")
    assert core.orchestrator.project_by_id(project.id) == project
    await core.orchestrator.unregister(project, actor="test")
    with pytest.raises(CcorchError) as caught:
        core.orchestrator.project_by_id(project.id)
    assert caught.value.code is ErrorCode.NO_SUCH_PROJECT
    assert await core.storage.run(Store.projects) == []
    assert core.repository.is_dir()


async def test_finding_by_a_place(core: Any, tmp_path: Path) -> None:
    record = await core.create("one")
    project = core.orchestrator.project("sample")
    assert await core.orchestrator.find(record.worktree) == (project, "one")
    assert await core.orchestrator.find(str(Path(record.worktree) / "deep/down")) == (project, "one")
    assert await core.orchestrator.find(str(core.repository)) == (project, "")
    with pytest.raises(CcorchError) as outside:
        await core.orchestrator.find(str(tmp_path))
    assert (outside.value.code, outside.value.hint.split()[0]) == (ErrorCode.NO_SUCH_PROJECT, "Go")
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    git(stranger, "init", "-q")
    git(stranger, "-c", "user.name=T", "-c", "user.email=t@example.com", "commit", "-q", "--allow-empty", "-m", "0")
    with pytest.raises(CcorchError, match="in no registered project") as unregistered:
        await core.orchestrator.find(str(stranger))
    assert "ccorchctl init" in unregistered.value.hint


async def test_a_repository_that_git_does_not_trust_is_told_as_that(
    core: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "absent"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    with pytest.raises(CcorchError, match="belongs to another user") as caught:
        await core.orchestrator.find(str(core.repository))
    assert caught.value.code is ErrorCode.NOT_ALLOWED
    assert "safe.directory" in caught.value.hint


async def test_agreeing_to_steps_that_were_not_shown_is_refused(core: Any) -> None:
    project = core.orchestrator.project("sample")
    (core.repository / ".ccorch.toml").write_text('[setup]\nsteps = ["true"]\n')
    file, agreed = core.orchestrator.setup_of(project)
    assert file.digest
    assert not agreed
    with pytest.raises(CcorchError) as caught:
        await core.orchestrator.agree(project, "0" * 64, actor="test")
    assert caught.value.code is ErrorCode.SETUP_NOT_AGREED
    await core.orchestrator.agree(project, file.digest, actor="test")
    assert core.orchestrator.setup_of(project)[1]


async def test_a_project_with_instances_stays(core: Any) -> None:
    await core.create("one")
    with pytest.raises(CcorchError, match="has instances: one") as caught:
        await core.orchestrator.unregister(core.orchestrator.project("sample"), actor="test")
    assert caught.value.code is ErrorCode.PROJECT_IN_USE
    assert core.orchestrator.project("sample")


async def test_an_instance_that_is_not_there_is_told_with_those_that_are(core: Any) -> None:
    with pytest.raises(CcorchError) as none:
        core.orchestrator.instance("sample/two")
    assert (none.value.code, none.value.hint) == (ErrorCode.NO_SUCH_INSTANCE, "sample has no instances yet.")
    await core.create("one")
    with pytest.raises(CcorchError) as caught:
        core.orchestrator.instance("sample/two")
    assert caught.value.hint == "In sample there are: one."
    with pytest.raises(CcorchError) as elsewhere:
        core.orchestrator.instance("absent/one")
    assert elsewhere.value.code is ErrorCode.NO_SUCH_PROJECT


async def test_an_empty_prompt_is_refused(core: Any) -> None:
    record = await core.create("one")
    with pytest.raises(CcorchError, match="the prompt is empty") as caught:
        await core.orchestrator.send(record.id, " \n", actor="test")
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT


async def test_a_merge_would_not_leave_changes_out(core: Any) -> None:
    record = await core.create("one")
    Path(record.worktree, "new.txt").write_text("new\n")
    with pytest.raises(CcorchError, match="changes that are not committed") as caught:
        await core.orchestrator.merge(record.id, actor="test")
    assert caught.value.code is ErrorCode.WORKTREE_DIRTY
    git(Path(record.worktree), "add", ".")
    git(Path(record.worktree), "-c", "user.name=T", "-c", "user.email=t@example.com", "commit", "-q", "-m", "1")
    assert await core.orchestrator.merge(record.id, actor="test") == git(core.repository, "rev-parse", "main")
    assert (core.repository / "new.txt").exists()


async def test_starting_what_runs_is_refused(core: Any) -> None:
    record = await core.create("one")
    with pytest.raises(CcorchError) as caught:
        await core.orchestrator.start(record.id, environment={}, actor="test")
    assert caught.value.code is ErrorCode.WRONG_STATE
    assert "instance restart sample/one" in caught.value.hint


async def test_removing_by_force_says_where_files_are_kept(core: Any) -> None:
    record = await core.create("one")
    git(Path(record.worktree), "clone", "-q", str(core.repository), "clone")
    removed = await core.orchestrator.remove(record.id, force=True, actor="test")
    assert (Path(removed.kept_folder) / "clone/.git").is_dir()
    [event] = [event for event in core.heard if event.kind == "instance.removed"]
    assert f"kept in {removed.kept_folder}" in event.message


async def test_listing_worktrees_goes_on_past_one_that_cannot_be_read(core: Any) -> None:
    for name in ("one", "two"):
        await core.create(name)
    broken = Path(core.record("one").worktree)
    (broken / ".git").unlink()
    (broken / ".git").write_text(f"gitdir: {core.repository}/.git/worktrees/absent\n")
    rows = {row["instance"]: row for row in await core.orchestrator.list_worktrees("sample")}
    assert (rows["one"]["missing"], rows["two"]["missing"]) == (True, False)
    with pytest.raises(CcorchError) as caught:
        await core.orchestrator.list_worktrees("absent")
    assert caught.value.code is ErrorCode.NO_SUCH_PROJECT


async def test_a_name_is_still_made_up_when_branches_have_them_all(core: Any) -> None:
    head = git(core.repository, "rev-parse", "HEAD")
    orders = "".join(f"create refs/heads/ccorch/{name} {head}\n" for name in (*creation._MADE_UP, "agent-1"))
    git(core.repository, "update-ref", "--stdin", stdin=orders)
    assert (await core.create("")).name == "agent-2"


async def test_a_port_that_somebody_listens_on_is_not_leased(core: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        variables = {"CCORCH_PORTS_FIRST": str(port), "CCORCH_PORTS_LAST": str(port)}
        core.orchestrator.config = config.load(core.naming.config_dir, variables)
        with pytest.raises(CcorchError) as caught:
            await core.create("one")
        assert caught.value.code is ErrorCode.LIMIT_REACHED
    assert not core.instances.records
    assert git(core.repository, "branch", "--list", "ccorch/*") == ""


async def test_an_instance_without_its_worktree_is_not_started(core: Any) -> None:
    record = await core.create("one")
    await core.orchestrator.stop(record.id, actor="test")
    shutil.rmtree(record.worktree)
    with pytest.raises(CcorchError, match="the worktree of sample/one is gone") as caught:
        await core.orchestrator.start(record.id, environment={}, actor="test")
    assert caught.value.code is ErrorCode.WRONG_STATE
    assert "instance remove sample/one" in caught.value.hint

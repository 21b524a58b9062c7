# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the doctor finds on a host that is not fit, and in a state that is not what the database says."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from ccorchd import agents
from ccorchd.contract import ErrorCode
from ccorchd.doctor import Doctor
from ccorchd.errors import CcorchError
from ccorchd.host.systemd import ScopeStatus


class Host:
    """The user manager of a host as it comes: nothing lingers, nothing is enabled, no controller is delegated."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self.version = 257
        self.lingers = False
        self.enabled = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manager, name)

    async def control_group(self) -> str:
        return ""

    async def linger(self) -> bool:
        return self.lingers

    async def enable_linger(self) -> None:
        self.lingers = True

    async def enabled_at_boot(self, _unit: str) -> bool:
        return self.enabled

    async def enable_at_boot(self, _unit: str) -> bool:
        changed, self.enabled = not self.enabled, True
        return changed


@pytest.fixture
def host(core: Any) -> Host:
    return Host(core.manager)


@pytest.fixture
def doctor(core: Any, host: Any) -> Doctor:
    return Doctor(core.orchestrator, host)


async def found(doctor: Doctor) -> dict[str, tuple[str, str]]:
    """Return result and message of each finding."""
    return {str(one["name"]): (str(one["result"]), str(one["message"])) for one in await doctor.examine()}


async def test_unprepared_host_is_told_of_and_prepared_once(doctor: Doctor) -> None:
    before = await found(doctor)
    assert before["linger"][0] == before["boot"][0] == "warn"
    done = await doctor.prepare_host()
    assert ["lingering" in done[0], "enabled" in done[1]] == [True, True]
    assert await doctor.prepare_host() == []
    after = await found(doctor)
    assert after["linger"] == ("ok", "instances outlive log-out and reboot")
    assert "boot" not in after


async def test_limits_that_nobody_enforces_are_named(doctor: Doctor) -> None:
    result, message = (await found(doctor))["limits"]
    assert result == "warn"
    assert "CPU limits and weights, memory limits, the limit of tasks" in message
    assert message.endswith("memory and tasks in use are estimated")
    assert (await doctor.status())["unenforced"] == ["cpu", "memory", "pids"]


@pytest.mark.parametrize(("version", "result"), [(254, "ok"), (255, "warn"), (256, "ok")])
async def test_systemd_that_ends_the_manager_at_log_out(doctor: Doctor, host: Host, version: int, result: str) -> None:
    host.version = version
    told, message = (await found(doctor))["systemd"]
    assert told == result
    assert f"systemd {version}" in message


async def test_check_that_fails_is_a_finding_and_keeps_no_other(core: Any, doctor: Doctor) -> None:
    core.manager.state = CcorchError(ErrorCode.TIMEOUT, "the user manager does not answer")
    findings = await found(doctor)
    assert findings["systemd"][0] == "fail"
    assert "the user manager does not answer" in findings["systemd"][1]
    assert findings["disk"][0] in ("ok", "warn")


async def test_old_and_missing_programs_fail(doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    old = tmp_path / "bin" / "tmux"
    old.write_text("#!/bin/sh\necho tmux 2.9a\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    findings = await found(doctor)
    assert findings["tmux"] == ("fail", "tmux 2.9a is too old: 3.2 is needed")
    assert findings["git"] == ("fail", "git is not installed")


async def test_agents_are_looked_for_where_the_manager_looks(
    core: Any, doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    core.config.set("claude.command", "claude-of-this-test", "test")
    core.instances.agents = agents.registry(core.config)
    assert (await found(doctor))["agent claude"][0] == "warn"
    program = tmp_path / ".local" / "bin" / "claude-of-this-test"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    findings = await found(doctor)
    assert findings["agent claude"] == ("ok", "its program is there")
    assert "agent command" not in findings


async def test_full_disk_is_told_of_for_each_place(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ccorchd.doctor._LEAST_FREE", shutil.disk_usage("/").total * 1024)
    findings = [one for one in await doctor.examine() if one["name"] == "disk"]
    assert [one["result"] for one in findings] == ["warn", "warn"]
    assert ["state" in str(findings[0]["message"]), "worktrees" in str(findings[1]["message"])] == [True, True]


async def test_project_that_cannot_be_used_is_a_failure(core: Any, doctor: Doctor) -> None:
    assert "project sample" not in await found(doctor)
    (core.repository / ".ccorch.toml").write_text("[setup\n")
    assert (await found(doctor))["project sample"][0] == "fail"
    core.repository.rename(core.repository.with_name("moved"))
    assert (await found(doctor))["project sample"] == ("fail", f"its repository is gone: {core.repository}")


async def test_instances_without_worktree_or_scope_are_failures(core: Any, doctor: Doctor) -> None:
    record = await core.create("one")
    assert "instance sample/one" not in await found(doctor)
    unit = core.instances.unit(record)
    status = core.manager.units.pop(unit)
    assert (await found(doctor))["instance sample/one"] == ("fail", f"it is working, but {unit} is gone")
    core.manager.units[unit] = status
    Path(record.worktree).rename(record.worktree + ".away")
    assert (await found(doctor))["instance sample/one"] == ("fail", f"its worktree is gone: {record.worktree}")


async def test_scope_of_nobody_is_left_over_while_it_is_active(core: Any, doctor: Doctor) -> None:
    await core.create("one")
    core.manager.units["ccorch-sample.lost.scope"] = ScopeStatus("active", "running", "success", "")
    core.manager.units["ccorch-sample.failed.scope"] = ScopeStatus("failed", "failed", "oom-kill", "")
    scopes = {name for name in await found(doctor) if name.startswith("scope ")}
    assert scopes == {"scope ccorch-sample.lost.scope"}

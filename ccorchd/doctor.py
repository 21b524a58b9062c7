# SPDX-License-Identifier: LGPL-2.1-or-later
"""Is this host fit, and is everything where the database says it is? Findings for people, and the status screen."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from ccorchd import __version__
from ccorchd.contract import State
from ccorchd.errors import CcorchError
from ccorchd.host.systemd import Systemd, cgroup_path
from ccorchd.host.usage import controllers, host_memory, host_status
from ccorchd.orchestrator import Orchestrator
from ccorchd.records import microseconds

_LEAST_FREE: Final = 1024**3
_WANTED: Final = ("cpu", "memory", "pids")
_GIVES: Final = {"cpu": "CPU limits and weights", "memory": "memory limits", "pids": "the limit of tasks"}
_ESTIMATED: Final = {"memory": "memory", "pids": "tasks"}
"""What is added up from the processes where the kernel keeps no account."""
_TMUX_LEAST: Final = (3, 2)
_GIT_LEAST: Final = (2, 39)
_SOUND_LOGIND: Final = 256
_RACY_LOGIND: Final = 255

Finding = dict[str, object]


def _finding(name: str, result: str, message: str, hint: str = "") -> Finding:
    return {"name": name, "result": result, "message": message, "hint": hint}


class Doctor:
    """Examines host and state; changes nothing but what :meth:`prepare_host` names."""

    def __init__(self, orchestrator: Orchestrator, systemd: Systemd) -> None:
        self._orchestrator = orchestrator
        self._systemd = systemd
        self._started = time.time()

    async def enforced(self) -> set[str]:
        """Return the controllers that are live for our scopes: what is not in it is not enforced."""
        group = await self._systemd.control_group()
        return await asyncio.to_thread(controllers, cgroup_path(group)) if group else set()

    async def status(self) -> dict[str, object]:
        """Return the fields of ``GetStatus``."""
        orchestrator = self._orchestrator
        states: dict[str, int] = {}
        for record in orchestrator.instances.records.values():
            states[str(record.state)] = states.get(str(record.state), 0) + 1
        enforced = await self.enforced()
        host = await asyncio.to_thread(host_status)
        naming = orchestrator.naming
        return {
            "version": __version__,
            "pid": os.getpid(),
            "started": microseconds(self._started),
            "deployment": "personal",
            "projects": len(orchestrator.projects),
            "instances": sum(states.values()),
            "states": states,
            "max_instances": orchestrator.config["instances.max"],
            "host_memory": host_memory(),
            "memory_available": host.get("memory_available"),
            "memory_pressure": host.get("memory_pressure"),
            "cpu_pressure": host.get("cpu_pressure"),
            "cpus": host.get("cpus"),
            "load": host.get("load"),
            "enforced": sorted(enforced & set(_WANTED)),
            "unenforced": sorted(set(_WANTED) - enforced),
            "linger": await self._systemd.linger(),
            "enabled": await self._systemd.enabled_at_boot(naming.daemon_unit),
            "config_dir": naming.config_dir,
            "state_dir": naming.state_dir,
            "data_dir": naming.data_dir,
            "runtime_dir": naming.runtime_dir,
            "slice": naming.slice,
            "unit": naming.daemon_unit,
        }

    async def prepare_host(self) -> list[str]:
        """Turn on what a reboot and a log-out need; return a sentence for each thing that was done."""
        done: list[str] = []
        unit = self._orchestrator.naming.daemon_unit
        if not await self._systemd.linger():
            await self._systemd.enable_linger()
            done.append("turned on lingering: your instances outlive your log-out (loginctl enable-linger)")
        if await self._systemd.enable_at_boot(unit):
            done.append(f"enabled {unit}: it starts at boot and resumes what ran (systemctl --user enable)")
        return done

    async def examine(self) -> list[Finding]:
        """Run every check, each for itself: one that fails is a finding of its own."""
        checks: list[tuple[str, Callable[[], Awaitable[list[Finding]]]]] = [
            ("systemd", self._check_systemd),
            ("limits", self._check_limits),
            ("linger", self._check_linger),
            ("programs", self._check_programs),
            ("agents", self._check_agents),
            ("disk", self._check_disk),
            ("projects", self._check_projects),
            ("instances", self._check_instances),
            ("leftovers", self._check_leftovers),
        ]
        findings: list[Finding] = []
        for name, check in checks:
            try:
                async with asyncio.timeout(20):
                    findings += await check()
            except (CcorchError, OSError, TimeoutError) as error:
                findings.append(_finding(name, "fail", f"this could not be checked: {error}"))
        return findings

    async def _check_systemd(self) -> list[Finding]:
        version = self._systemd.version
        if _RACY_LOGIND <= version < _SOUND_LOGIND:
            return [
                _finding(
                    "systemd",
                    "warn",
                    f"systemd {version} can end your user manager at the last SSH log-out (systemd issue 43361)",
                    "Instances resume by themselves after it; systemd 256.3 has the fix.",
                )
            ]
        return [_finding("systemd", "ok", f"systemd {version}, user manager {await self._systemd.manager_state()}")]

    async def _check_limits(self) -> list[Finding]:
        missing = sorted(set(_WANTED) - await self.enforced())
        if not missing:
            return [_finding("limits", "ok", "the kernel enforces memory, CPU and task limits on every instance")]
        what = ", ".join(_GIVES[name] for name in missing)
        figures = " and ".join(_ESTIMATED[name] for name in missing if name in _ESTIMATED)
        so = f"; {figures} in use {'are' if 'pids' in missing else 'is'} estimated" if figures else ""
        return [
            _finding(
                "limits",
                "warn",
                f"this host does not enforce {what}{so}",
                "It does not delegate these cgroup v2 controllers to its users; ccorch(7) says where they are. "
                "Everything else works.",
            )
        ]

    async def _check_linger(self) -> list[Finding]:
        unit = self._orchestrator.naming.daemon_unit
        findings = []
        linger, enabled = await self._systemd.linger(), await self._systemd.enabled_at_boot(unit)
        if not linger:
            findings.append(
                _finding(
                    "linger", "warn", "instances end when you log out: lingering is off", "Run: loginctl enable-linger"
                )
            )
        if not enabled:
            findings.append(
                _finding(
                    "boot",
                    "warn",
                    f"nothing is resumed after a reboot: {unit} is not enabled",
                    f"Run: systemctl --user enable {unit}",
                )
            )
        return findings or [_finding("linger", "ok", "instances outlive log-out and reboot")]

    async def _check_programs(self) -> list[Finding]:
        return [
            await _version_check("tmux", ["tmux", "-V"], _TMUX_LEAST, "Install it: apt install tmux"),
            await _version_check("git", ["git", "--version"], _GIT_LEAST, "Install it: apt install git"),
        ]

    async def _check_agents(self) -> list[Finding]:
        environment = await self._systemd.environment()
        local = f"{Path.home()}/.local/bin"
        environment["PATH"] = f"{local}:{environment.get('PATH', '/usr/local/bin:/usr/bin:/bin')}"
        findings = []
        for kind, agent in sorted(self._orchestrator.instances.agents.items()):
            if kind == "command":
                continue
            try:
                await asyncio.to_thread(agent.check, environment, {})
                findings.append(_finding(f"agent {kind}", "ok", "its program is there"))
            except CcorchError as error:
                findings.append(_finding(f"agent {kind}", "warn", error.message, error.hint))
        return findings

    async def _check_disk(self) -> list[Finding]:
        naming = self._orchestrator.naming
        findings = []
        for what, path in (("state", naming.state_dir), ("worktrees", naming.data_dir)):
            place = next(folder for folder in (path, *path.parents) if folder.exists())
            free = shutil.disk_usage(place).free
            if free < _LEAST_FREE:
                findings.append(
                    _finding(
                        "disk", "warn", f"only {free / 1024**2:.0f} MiB are free for {what} in {path}", "Free space."
                    )
                )
        return findings or [_finding("disk", "ok", "there is room for state and worktrees")]

    async def _check_projects(self) -> list[Finding]:
        findings = []
        for project in self._orchestrator.projects.values():
            if not await asyncio.to_thread(Path(project.repository).is_dir):
                findings.append(
                    _finding(
                        f"project {project.name}",
                        "fail",
                        f"its repository is gone: {project.repository}",
                        "Bring it back, or remove instances and project.",
                    )
                )
                continue
            try:
                self._orchestrator.setup_of(project)
            except CcorchError as error:
                findings.append(_finding(f"project {project.name}", "fail", error.message, error.hint))
        return findings

    async def _check_instances(self) -> list[Finding]:
        orchestrator = self._orchestrator
        scopes = await self._systemd.scopes()
        findings = []
        for record in orchestrator.instances.records.values():
            name = f"instance {record.address}"
            if not await asyncio.to_thread(Path(record.worktree).is_dir):
                findings.append(
                    _finding(
                        name,
                        "fail",
                        f"its worktree is gone: {record.worktree}",
                        f"Its branch may be whole. Remove it: ccorchctl instance remove {record.address}",
                    )
                )
            unit = orchestrator.instances.unit(record)
            if record.state.running and record.state is not State.STARTING and unit not in scopes:
                findings.append(
                    _finding(name, "fail", f"it is {record.state}, but {unit} is gone", "Restart it: ccorchctl restart")
                )
        return findings

    async def _check_leftovers(self) -> list[Finding]:
        known = {self._orchestrator.instances.unit(record) for record in self._orchestrator.instances.records.values()}
        return [
            _finding(
                f"scope {unit}",
                "warn",
                "it belongs to no instance that ccorch knows",
                f"Look at it, then: systemctl --user stop {unit}",
            )
            for unit, status in (await self._systemd.scopes()).items()
            if unit not in known and status.active_state == "active"
        ]


async def _version_check(name: str, argv: list[str], least: tuple[int, int], hint: str) -> Finding:
    try:
        child = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        async with asyncio.timeout(5):
            output, _ = await child.communicate()
    except OSError:
        return _finding(name, "fail", f"{name} is not installed", hint)
    text = output.decode(errors="replace").strip()
    numbers = re.findall(r"\d+", text)
    found = tuple(int(part) for part in numbers[:2])
    if len(found) == 2 and found < least:
        wanted = ".".join(map(str, least))
        return _finding(name, "fail", f"{text} is too old: {wanted} is needed", hint)
    return _finding(name, "ok", text)

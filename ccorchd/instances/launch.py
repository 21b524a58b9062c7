# SPDX-License-Identifier: LGPL-2.1-or-later
"""From an agent's argument vector to processes in a scope.

The order is what makes a launch safe to interrupt: a shell that does nothing but wait for a word on its standard input
is put into the scope first, and only then becomes ``tmux new-session -d``. So nothing of an agent ever runs outside its
limits, and whatever fails before the word is said leaves nothing but a shell that sees its input end.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from ccorchd.agents.base import Launch, Paths, hook_argv
from ccorchd.contract import ErrorCode, Naming
from ccorchd.errors import CcorchError
from ccorchd.host.systemd import Systemd
from ccorchd.host.tmux import TmuxServer, server_environment, write_config
from ccorchd.model import InstanceRecord

SETUP_STEP: Final = "SetupStep"
SETUP_DONE: Final = "SetupDone"
SETUP_FAILED: Final = "SetupFailed"
SETUP_EXIT: Final = 97
"""Exit status of a launch script whose set-up step failed; the report that came before names the step."""

_GATE: Final = ["/bin/sh", "-c", 'read -r word && [ "$word" = go ] || exit 1; exec "$@"', "ccorch-launch"]


def instance_paths(naming: Naming, instance: InstanceRecord) -> Paths:
    """Return where *instance* keeps its files. Ids are never used twice, so neither are the folders."""
    runtime = naming.runtime_dir / "i" / str(instance.id)
    return Paths(
        runtime=runtime,
        socket=runtime / "events.sock",
        spool=naming.state_dir / "spool" / str(instance.id),
        worktree=Path(instance.worktree),
    )


def tmux_socket(paths: Paths) -> Path:
    return paths.runtime / "tmux.sock"


def launch_script(launch: Launch, setup: Sequence[str]) -> str:
    """Return the shell script of the agent's pane: the set-up steps, each reported, and then the agent in its place."""
    lines = ["#!/bin/sh", "# Made by ccorchd at each start."]
    if setup:
        lines += [
            "report() {",
            f"  event=$1; printf '%s' \"$2\" | {_hook_call()} || :",
            "}",
        ]
    for number, step in enumerate(setup, start=1):
        quoted = shlex.quote(step)
        payload = shlex.quote(json.dumps({"step": step, "number": number, "of": len(setup)}))
        lines += [
            f"printf '\\033[1m$ %s\\033[0m\\n' {quoted}",
            f"report {SETUP_STEP} {payload}",
            f"/bin/sh -c {quoted}",
            "status=$?",
            'if [ "$status" -ne 0 ]; then',
            f'  report {SETUP_FAILED} "{{\\"number\\": {number}, \\"status\\": $status}}"',
            # tmux can lose what is written in the very moment before an exit.
            f"  sleep 0.1; exit {SETUP_EXIT}",
            "fi",
        ]
    if setup:
        lines.append(f"report {SETUP_DONE} '{{}}'")
    if launch.user_bus:
        # Here and not in tmux' environment: the server must never find the user's bus (see server_environment).
        lines.append('export DBUS_SESSION_BUS_ADDRESS="unix:path=$XDG_RUNTIME_DIR/bus"')
    lines.append("exec " + shlex.join(launch.argv))
    return "\n".join(lines) + "\n"


def _hook_call() -> str:
    words = hook_argv("EVENT")
    return " ".join('"$event"' if word == "EVENT" else shlex.quote(word) for word in words)


class Launcher:
    """Puts agents into scopes."""

    def __init__(self, naming: Naming, systemd: Systemd) -> None:
        self._naming = naming
        self._systemd = systemd

    async def launch(
        self,
        instance: InstanceRecord,
        paths: Paths,
        launch: Launch,
        environment: Mapping[str, str],
        setup: Sequence[str],
        *,
        stop_timeout: float,
        timeout: float,
    ) -> tuple[TmuxServer, int]:
        """Start *launch* in a scope of its own and return its tmux server and the agent's PID.

        Raises ``HostFailed`` or ``MissingProgram``; then neither scope nor process is left.
        """
        script = paths.runtime / "launch.sh"
        config = paths.runtime / "tmux.conf"
        script.write_text(launch_script(launch, setup), encoding="utf-8")
        write_config(config, str(instance.address))
        socket = tmux_socket(paths)
        socket.unlink(missing_ok=True)
        server_argv = TmuxServer.launch_argv(
            socket, cwd=paths.worktree, command=["/bin/sh", str(script)], config=config
        )
        env = server_environment({**environment, **launch.environment, **paths.hook_environment()})
        unit = self._naming.scope(instance.project, instance.name)
        child = await self._gate(server_argv, env, paths.worktree)
        try:
            async with asyncio.timeout(timeout):
                await self._systemd.start_scope(
                    unit,
                    child.pid,
                    description=f"ccorch: {instance.agent} agent {instance.address}",
                    limits=instance.limits,
                    stop_timeout=stop_timeout,
                )
                _, complaint = await child.communicate(b"go\n")
            if child.returncode != 0:
                words = " ".join(complaint.decode(errors="replace").split()) or f"exit status {child.returncode}"
                raise CcorchError(
                    ErrorCode.HOST_FAILED,
                    f"tmux did not start for {instance.address}: {words}",
                    "Try: ccorchctl doctor",
                )
            server = TmuxServer(socket)
            return server, await self._agent_pid(server, instance, unit)
        except TimeoutError:
            await self._undo(child, unit, stop_timeout)
            raise CcorchError(
                ErrorCode.TIMEOUT, f"{instance.address} was not launched within {timeout:g} s", "Try: ccorchctl doctor"
            ) from None
        except BaseException:
            await self._undo(child, unit, stop_timeout)
            raise

    @staticmethod
    async def _gate(argv: Sequence[str], environment: Mapping[str, str], cwd: Path) -> asyncio.subprocess.Process:
        try:
            return await asyncio.create_subprocess_exec(
                *_GATE,
                *argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env=dict(environment),
                cwd=cwd,
                start_new_session=True,
            )
        except OSError as error:
            raise CcorchError(
                ErrorCode.HOST_FAILED, f"no process could be started in {cwd}: {error.strerror}"
            ) from error

    async def _agent_pid(self, server: TmuxServer, instance: InstanceRecord, unit: str) -> int:
        panes = await server.panes()
        agent = next((pane for pane in panes if pane.window == "agent"), None)
        if agent is None:
            raise CcorchError(ErrorCode.HOST_FAILED, f"tmux started for {instance.address}, but has no window 'agent'")
        # One that has ended already is no fault: how it ended is told by its pane.
        if process_alive(agent.pid) and not in_scope(agent.pid, unit):
            raise CcorchError(
                ErrorCode.HOST_FAILED,
                f"the agent of {instance.address} is not in {unit}, so its limits would not hold",
                "tmux moved the pane away; please report this with the output of: tmux -V",
            )
        return agent.pid

    async def _undo(self, child: asyncio.subprocess.Process, unit: str, stop_timeout: float) -> None:
        if child.returncode is None:
            child.kill()
            await child.wait()
        if await self._systemd.scope_status(unit) is not None:
            await self._systemd.stop_scope(unit, timeout=stop_timeout)
            await self._systemd.reset_failed(unit)


def in_scope(pid: int, unit: str) -> bool:
    """Tell whether process *pid* is in the cgroup of *unit*; a process that is gone is not.

    ``/proc/PID/cgroup`` may list v1 hierarchies too: only the line ``0::`` counts (cgroups(7)).
    """
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return False
    return any(line.startswith("0::") and unit in line.split("/") for line in lines)


def process_alive(pid: int) -> bool:
    """Tell whether *pid* runs (a zombie does not)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def process_environment(pid: int) -> dict[str, str]:
    """Return what *pid* was started with (proc_pid_environ(5)); nothing if it is gone or somebody else's."""
    try:
        text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="surrogateescape")
    except OSError:
        return {}
    return {name: value for name, equals, value in (word.partition("=") for word in text.split("\0")) if equals}


def boot_id() -> str:
    """Return the kernel's id of this boot (random(4)): what tells a reboot from a death."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def remove_runtime(paths: Paths) -> None:
    """Delete what a stopped instance leaves in the runtime directory."""
    shutil.rmtree(paths.runtime, ignore_errors=True)
    if paths.spool.is_dir() and not any(paths.spool.iterdir()):
        os.rmdir(paths.spool)

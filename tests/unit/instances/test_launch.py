# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ccorchd.agents.base import Launch
from ccorchd.instances.launch import SETUP_EXIT, boot_id, in_scope, launch_script, process_alive, process_environment


def run_script(tmp_path: Path, launch: Launch, setup: list[str]) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "launch.sh"
    script.write_text(launch_script(launch, setup))
    environment = {**os.environ, "CCORCH_SOCKET": str(tmp_path / "none.sock"), "CCORCH_SPOOL": str(tmp_path / "spool")}
    return subprocess.run(
        ["/bin/sh", str(script)], cwd=tmp_path, capture_output=True, text=True, env=environment, check=False, timeout=60
    )


def test_agent_takes_the_place_of_the_shell(tmp_path: Path) -> None:
    """The pane's PID must be the agent's: its death is what the daemon watches."""
    code = "import os; print(os.getpid())"
    script = tmp_path / "launch.sh"
    script.write_text(launch_script(Launch([sys.executable, "-c", code]), []))
    with subprocess.Popen(["/bin/sh", str(script)], stdout=subprocess.PIPE, text=True) as shell:
        output, _ = shell.communicate(timeout=60)
        assert int(output) == shell.pid


def test_arguments_are_exact(tmp_path: Path) -> None:
    words = ["a b", "it's", '"quoted"', "$HOME", "new\nline", "äöü 🌲", "`id`", ""]
    code = "import sys; print(sys.argv[1:])"
    ended = run_script(tmp_path, Launch([sys.executable, "-c", code, *words]), [])
    assert ended.stdout.strip() == str(words)


def test_setup_steps_are_reported_and_run_before_the_agent(tmp_path: Path) -> None:
    ended = run_script(tmp_path, Launch(["/bin/cat", "made"]), ["echo 'it''s' > made", 'echo "two" >> made'])
    assert ended.stdout.endswith("its\ntwo\n")
    reports = [path.read_text() for path in sorted((tmp_path / "spool").glob("*.json"))]
    assert [("SetupStep" in text, "SetupDone" in text) for text in reports] == [
        (True, False),
        (True, False),
        (False, True),
    ]


def test_failing_step_ends_it_with_a_report(tmp_path: Path) -> None:
    ended = run_script(tmp_path, Launch(["/bin/echo", "agent ran"]), ["exit 5", "echo never"])
    assert ended.returncode == SETUP_EXIT
    assert "agent ran" not in ended.stdout
    failed = [path.read_text() for path in (tmp_path / "spool").glob("*.json") if "SetupFailed" in path.read_text()]
    assert len(failed) == 1
    assert '"status": 5' in failed[0] or '"status":5' in failed[0]


def test_processes_are_seen_as_they_are() -> None:
    assert process_alive(os.getpid())
    with subprocess.Popen(["/bin/true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not process_alive(child.pid)  # a zombie
    assert not process_alive(2**22 + 1)
    assert not in_scope(os.getpid(), "ccorch-none.none.scope")
    assert not in_scope(2**22 + 1, "ccorch-none.none.scope")
    assert len(boot_id()) == 36


def test_environment_of_a_process() -> None:
    shell = ["/bin/sh", "-c", "echo; read -r _"]
    variables = {"A": "x=ä\ny", "B": ""}
    with subprocess.Popen(shell, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=variables) as child:
        assert child.stdout
        child.stdout.readline()  # in the middle of an exec a process has no environment
        seen = process_environment(child.pid)
        assert (seen["A"], seen["B"]) == ("x=ä\ny", "")
        child.communicate(b"\n", timeout=60)
    assert process_environment(child.pid) == {}

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reboot, power cut, end of the user manager: what ran is resumed where it was, once; what was stopped stays so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from guest import REPOSITORY, Guest, Record, eventually

BEFORE = {
    "sample/sleeps": "working",
    "sample/worked": "idle",
    "sample/asks": "waiting",
    "sample/command": "working",
}
AFTER = {address: "working" if address == "sample/command" else "idle" for address in BEFORE}
"""An agent that is resumed waits at its prompt for what comes next, as Claude Code does."""
STOPPED = "sample/stopped"


@pytest.fixture(scope="module")
def team(installed: Guest) -> Iterator[Guest]:
    """Five instances: at work, done, waiting for a person, a command, and one that was stopped."""
    installed.create(
        sleeps=[],
        worked=["--prompt", "Add a docs page about walnut trees"],
        asks=[],
        command=["--agent", "command", "--option", "command=sleep infinity"],
        stopped=[],
    )
    installed.wait_states({address: [state] for address, state in {**AFTER, STOPPED: "idle"}.items()})
    installed.ok("instance", "stop", STOPPED)
    installed.wait_state(STOPPED, "stopped")
    yield installed
    if installed.machine.alive:
        installed.clear()


class Outage:
    """What was before it, and the checks of what is after it."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        for name, prompt in (("sleeps", "#sleep 3600"), ("asks", "#permission")):
            guest.ok("instance", "send", f"sample/{name}", prompt)
        self.records = guest.wait_states(
            {address: [state] for address, state in {**BEFORE, STOPPED: "stopped"}.items()}
        )
        self.scopes = guest.scopes()
        self.starts = {address: self._starts(address) for address in self.records}
        self.head = guest.shell(f"git -C {REPOSITORY} rev-parse ccorch/worked")

    def _starts(self, address: str) -> int:
        return len(self.guest.events(address, "instance.started", "instance.resumed"))

    def check(self) -> dict[str, Record]:
        """Wait until everybody is back, and look at everything that must be as it was or anew; return the records."""
        guest = self.guest

        def back() -> bool:
            found = guest.instances()
            return all(found.get(one, {}).get("restarts", -1) > self.records[one]["restarts"] for one in BEFORE)

        try:
            eventually("everybody is started again", back)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{guest.instances()}\n{guest.journal()}") from None
        after = guest.wait_states({address: [state] for address, state in AFTER.items()})
        scopes = guest.scopes()
        assert sorted(after) == sorted(self.records)
        assert sorted(scopes) == sorted(after[address]["unit"] for address in BEFORE)
        for address, record in self.records.items():
            now = after[address]
            for key in ("session_id", "branch", "worktree", "port", "limits", "unit", "created", "agent"):
                assert now.get(key) == record.get(key), f"{key} of {address}"
            if address == STOPPED:
                assert (now["state"], now["restarts"]) == ("stopped", record["restarts"])
                assert self._starts(address) == self.starts[address]
                continue
            assert now["restarts"] == record["restarts"] + 1
            assert self._starts(address) == self.starts[address] + 1
            assert scopes[now["unit"]] != self.scopes[now["unit"]]
            assert str(now["pid"]) in guest.cgroup(address, "cgroup.procs")["cgroup.procs"].split()
            if now["agent"] == "demo":
                agents = guest.shell(f"pgrep -f -- '[-]-resume {now['session_id']}' || true").split()
                assert agents == [str(now["pid"])], address
        assert guest.worktrees() == len(self.records)
        for record in self.records.values():
            branch = guest.shell(f"git -C {record['worktree']} symbolic-ref --short HEAD").strip()
            assert branch == record["branch"]
        assert guest.shell(f"git -C {REPOSITORY} rev-parse ccorch/worked") == self.head
        assert guest.sound() == "ok"
        return after


def test_reboot_resumes_what_ran(team: Guest) -> None:
    outage = Outage(team)
    team.machine.reboot()
    outage.check()
    # It goes on where it was.
    team.ok("instance", "send", "sample/worked", "Add a docs page about hazel")
    team.wait_state("sample/worked", "idle")
    assert "resumed" in " ".join(event["message"] for event in team.events("sample/worked"))


def test_power_cut_resumes_what_ran_and_forgets_nothing_it_told(team: Guest) -> None:
    outage = Outage(team)
    team.shell("sync")  # git leaves it to the file system when commits reach the disk; ccorch's own records do not wait
    team.ok("instance", "send", "sample/worked", "Add a changelog entry about maple syrup")
    told = team.events("sample/worked")
    assert [event for event in told if event["kind"] == "agent.prompt" and "maple" in event["message"]]
    team.machine.power_cut()
    team.machine.boot_again()
    outage.head = team.shell(f"git -C {REPOSITORY} rev-parse ccorch/worked")  # it was at work just then
    outage.check()
    after = {event["id"]: event for event in team.events("sample/worked")}
    assert [event for event in told if after.get(event["id"]) != event] == []
    # What it had begun it finishes, and does nothing twice.
    team.ok("instance", "send", "sample/worked", "continue")
    team.wait_state("sample/worked", "idle")
    subjects = team.shell(f"git -C {REPOSITORY} log --format=%s main..ccorch/worked").splitlines()
    assert len(subjects) == len(set(subjects))
    assert "maple" in " ".join(subjects).lower()
    assert not team.shell(f"git -C {outage.records['sample/worked']['worktree']} status --porcelain")


def test_end_of_the_user_manager_resumes_what_ran(team: Guest) -> None:
    outage = Outage(team)
    team.shell(f"loginctl terminate-user {team.machine.user}", root=True)
    eventually("nobody is left", lambda: not team.shell(f"pgrep -u {team.machine.uid} || true", root=True))
    team.machine.run(["true"], login=True, check=True)  # who logs in again finds everybody back
    outage.check()
    assert team.call("GetStatus")["linger"] is True

# SPDX-License-Identifier: LGPL-2.1-or-later
"""A fork bomb fills its own limit and nothing else."""

from __future__ import annotations

from guest import Guest, eventually

LIMIT = 64
BOMB = """python3 -c '
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
'"""


def test_fork_bomb_leaves_the_others_and_the_machine_alone(guest: Guest) -> None:
    guest.create(calm=["--prompt", "#sleep 3600"], useful=[])
    before = guest.wait_states({"sample/calm": ["working"], "sample/useful": ["idle"]})
    guest.create(bomb=["--agent", "command", "--option", f"command={BOMB}", "--tasks-max", str(LIMIT)])
    eventually("it has hit its limit", lambda: guest.counter("sample/bomb", "pids.events", "max") > 0)
    eventually("it is counted", lambda: guest.instance("sample/bomb").get("tasks_current") == LIMIT)
    assert int(guest.cgroup("sample/bomb", "pids.current")["pids.current"]) <= LIMIT

    # While it goes on: somebody else gets a task and does it, and the command line answers.
    guest.ok("instance", "send", "sample/useful", "Add a docs page about juniper")
    after = guest.wait_states({"sample/useful": ["idle"], "sample/calm": ["working"]})
    assert guest.commits("ccorch/useful") > 0
    for address, record in before.items():
        assert after[address]["pid"] == record["pid"]
        assert after[address]["restarts"] == 0
    assert int(guest.cgroup("sample/bomb", "pids.current")["pids.current"]) == LIMIT
    assert "bomb" in guest.ok("instance", "list")

    # A scope with no task to spare can be stopped all the same.
    guest.ok("instance", "stop", "sample/bomb")
    assert guest.instance("sample/bomb")["state"] == "stopped"
    assert set(guest.scopes()) == {before[address]["unit"] for address in before}
    assert guest.shell("pgrep -fc '[o]s.fork' || true").strip() == "0"

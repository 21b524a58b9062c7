# SPDX-License-Identifier: LGPL-2.1-or-later
"""One of five takes more memory than it may: the kernel kills what is in its scope, and nobody else notices."""

from __future__ import annotations

import re

from guest import Guest, eventually

MIB = 1024**2
FOUR = ("sample/n0", "sample/n1", "sample/n2", "sample/n3")
HOG = "python3 -c 'import mmap; hoard = mmap.mmap(-1, 400 << 20); [hoard.write(bytes(1 << 20)) for _ in range(400)]'"


def test_balloon_is_killed_within_its_limit_and_four_go_on(guest: Guest) -> None:
    guest.create(
        n0=["--prompt", "#sleep 3600"],
        n1=["--prompt", "#sleep 3600"],
        n2=["--prompt", "Add a docs page about walnut trees"],
        n3=["--prompt", "Add a changelog entry about maple syrup"],
        balloon=["--memory-max", "150M"],
    )
    states = {"n0": "working", "n1": "working", "n2": "idle", "n3": "idle", "balloon": "idle"}
    wanted = {f"sample/{name}": [state] for name, state in states.items()}
    before = guest.wait_states(wanted)
    done = {name: guest.commits(f"ccorch/{name}") for name in ("n2", "n3")}
    assert all(done.values())

    guest.ok("instance", "send", "sample/balloon", "#balloon")
    killed = eventually("the kernel killed something", lambda: guest.kernel("Memory cgroup out of memory: Killed"))
    victim = re.search(r"Killed process (\d+) \(demo-balloon\)", killed[0])
    assert victim, killed
    eventually("it is counted", lambda: guest.instance("sample/balloon")["oom_kills"] == 1)
    after = guest.wait_states(wanted)

    # Within its limit, and not because the machine had none left.
    assert len(killed) == 1
    assert all("constraint=CONSTRAINT_MEMCG" in line for line in guest.kernel("oom-kill:"))
    assert 140 * MIB < after["sample/balloon"]["memory_peak"] <= 150 * MIB
    assert guest.call("GetStatus")["memory_available"] > 500 * MIB
    # The story names the victim.
    told = eventually("it is told", lambda: guest.events("sample/balloon", "instance.oom"))
    assert len(told) == 1
    assert f"the kernel killed demo-balloon (PID {victim[1]}," in told[0]["message"]
    assert "150 MiB" in told[0]["message"]
    assert told[0]["message"] in guest.ok("instance", "why", "sample/balloon")
    # The balloon's agent itself lives, and so do the four.
    for address in wanted:
        assert after[address]["pid"] == before[address]["pid"], address
        assert after[address]["restarts"] == 0
    assert {after[address]["oom_kills"] for address in FOUR} == {0}
    guest.ok("instance", "send", "sample/n2", "Add a docs page about hazel")
    guest.wait_state("sample/n2", "idle")
    eventually("n2 works on", lambda: guest.commits("ccorch/n2") > done["n2"])

    # A daemon that begins to watch anew does not tell it again.
    guest.shell("systemctl --user restart ccorchd")
    sampled = eventually("it is watched again", lambda: guest.instances().get("sample/balloon", {}).get("oom_kills"))
    assert sampled == 1
    assert len(guest.events("sample/balloon", "instance.oom")) == 1
    assert {address: record["pid"] for address, record in guest.instances().items()} == {
        address: record["pid"] for address, record in before.items()
    }


def test_agent_that_is_killed_itself_has_failed_of_it(guest: Guest) -> None:
    options = ["--agent", "command", "--option", f"command={HOG}", "--memory-max", "60M", "--memory-high", "infinity"]
    guest.create(hog=options, calm=[])
    record = guest.wait_states({"sample/hog": ["failed", "stopped"], "sample/calm": ["idle"]})["sample/hog"]
    assert (record["state"], record["reason"]) == ("failed", "out-of-memory")
    assert "60 MiB" in record["reason_text"]
    killed = guest.kernel("ccorch-sample.hog.scope")[-1]
    victim = re.search(r"task=python3,pid=(\d+)", killed)
    assert victim, killed
    assert f"(PID {victim[1]}" in record["reason_text"]
    assert record["reason_text"] in guest.ok("instance", "why", "sample/hog")
    assert list(guest.scopes()) == ["ccorch-sample.calm.scope"]

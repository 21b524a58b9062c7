# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every limit is enforced by the kernel, and what is measured is what the kernel counts."""

from __future__ import annotations

import json

from guest import Guest, eventually

MIB = 1024**2


def test_doctor_and_status_say_that_every_limit_is_enforced(guest: Guest) -> None:
    status = guest.call("GetStatus")
    assert status["enforced"] == ["cpu", "memory", "pids"]
    assert status["unenforced"] == []
    assert status["linger"] is True
    assert status["enabled"] is True
    findings = {check["name"]: check for check in json.loads(guest.ok("doctor", "-o", "json"))}
    assert findings["limits"]["result"] == "ok"
    assert "memory, CPU and task limits" in findings["limits"]["message"]
    assert not [check for check in findings.values() if check["result"] == "fail"]


def test_cgroups_hold_what_is_shown_and_figures_are_theirs(guest: Guest) -> None:
    chosen = ["--memory-max", "200M", "--memory-high", "180M", "--cpu-weight", "250", "--cpu-quota", "50%"]
    guest.create(chosen=[*chosen, "--tasks-max", "64"], default=[])
    guest.wait_states({"sample/chosen": ["idle"], "sample/default": ["idle"]})
    files = ("memory.max", "memory.high", "pids.max", "cpu.weight", "cpu.max")
    for name, memory, high, tasks, weight, quota in (
        ("chosen", 200 * MIB, 180 * MIB, 64, 250, "50000 100000"),
        ("default", None, None, 1024, 100, "max 100000"),
    ):
        shown = json.loads(guest.ok("instance", "show", f"sample/{name}", "-o", "json"))
        limits = shown["limits"]
        found = guest.cgroup(f"sample/{name}", *files)
        page = 4096  # the kernel rounds down to whole pages
        assert int(found["memory.max"]) == int(limits["MemoryMax"]) // page * page
        assert int(found["memory.high"]) == int(limits["MemoryHigh"]) // page * page
        assert found["pids.max"] == limits["TasksMax"] == str(tasks)
        assert found["cpu.weight"] == limits["CPUWeight"] == str(weight)
        assert found["cpu.max"] == quota
        if memory:
            assert (int(limits["MemoryMax"]), int(limits["MemoryHigh"])) == (memory, high)
        assert 64 * MIB < int(limits["MemoryMax"]) < guest.call("GetStatus")["host_memory"]

    def agree() -> bool:
        """An idle agent's figures stand still, but for the second between two samples."""
        record = guest.instance("sample/default")
        kernel = guest.cgroup("sample/default", "memory.current", "memory.peak", "pids.current", "cpu.stat")
        spent = int(dict(line.split() for line in kernel["cpu.stat"].splitlines())["usage_usec"]) / 1e6
        return bool(
            record["measured"] == "cgroup"
            and record["tasks_current"] == int(kernel["pids.current"])
            and abs(record["memory_current"] - int(kernel["memory.current"])) < MIB
            and record["memory_peak"] == int(kernel["memory.peak"])
            and record["memory_peak"] >= record["memory_current"] > MIB
            and abs(record["cpu_usage_seconds"] - spent) < 0.1
        )

    eventually("the record has the kernel's figures", agree)


def test_cpu_quota_throttles(guest: Guest) -> None:
    spin = ["--agent", "command", "--option", "command=sh -c 'while :; do :; done'", "--cpu-quota", "20%"]
    guest.create(spins=spin)
    guest.wait_state("sample/spins", "working")
    assert guest.cgroup("sample/spins", "cpu.max")["cpu.max"] == "20000 100000"
    eventually("it is throttled", lambda: guest.counter("sample/spins", "cpu.stat", "nr_throttled") > 20)

    def clocks() -> tuple[float, float]:
        """Return the guest's seconds since its boot and the CPU seconds of the scope."""
        stat = guest.cgroup("sample/spins", "/proc/uptime", "cpu.stat")
        spent = dict(line.split() for line in stat["cpu.stat"].splitlines())["usage_usec"]
        return float(stat["/proc/uptime"].split()[0]), int(spent) / 1e6

    uptime, spent = clocks()
    later = eventually("another second of CPU time", lambda: (now := clocks())[1] > spent + 1 and now)
    share = (later[1] - spent) / (later[0] - uptime)
    assert 0.05 < share < 0.27, f"it took {share:.0%} of a CPU"
    eventually("the record says so", lambda: guest.instance("sample/spins")["cpu_usage_seconds"] > spent + 1)

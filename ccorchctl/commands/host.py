# SPDX-License-Identifier: LGPL-2.1-or-later
"""Verbs about the daemon and its host: ``status``, ``doctor``, ``reload``, ``shutdown`` and ``version``."""

from __future__ import annotations

from typing import Any, Final

from ccorchctl import __version__, prompts
from ccorchctl.commands import Verbs
from ccorchctl.context import Context
from ccorchctl.failures import NO_BUS, NOT_RUNNING, Failure, printable
from ccorchctl.output import (
    URGENCY,
    Output,
    age,
    controller_words,
    count,
    home,
    machine,
    one_line,
    size,
    stamp,
    unenforced_words,
)
from ccorchd.contract import API_VERSION, CHECK_FIELDS, ErrorCode, Exit, State


def add(verbs: Verbs) -> None:
    verbs.verb("status", run_status, "show the daemon, its host, and what limits can do here", example="status")
    verbs.verb(
        "doctor",
        run_doctor,
        "check this machine: what works, what is missing, what to do about it",
        example="doctor",
        description="Check this machine: what works, what is missing, what to do about it. "
        "The exit status is 1 when a check fails; warnings don't count.",
    )
    verbs.verb("reload", run_reload, "have the daemon read its settings again", example="reload")
    verbs.verb(
        "shutdown",
        run_shutdown,
        "stop all instances, then the daemon; worktrees, branches and sessions stay",
        example="shutdown --yes",
    )
    verbs.verb("version", run_version, "show the versions of ccorchctl and of the running daemon", example="version")


async def run_status(context: Context) -> int:
    status = await (await context.client()).status()
    out = context.out
    if not out.human:
        out.data(machine(status))
        return 0
    dot = "●" if out.encodes("●") else "*"
    unit = str(status.get("unit") or context.naming.daemon_unit)
    out.line(f"{out.paint(dot, 'green')} {out.paint(unit, 'bold')}: ccorchd {status.get('version', '')}")
    started = status.get("started")
    out.fields(
        [
            ("Started", f"{stamp(started)} ({age(started)})" if started else ""),
            ("PID", str(status.get("pid") or "")),
            ("Deployment", str(status.get("deployment") or "")),
            ("Needs you", out.paint(needs_line(status), "yellow")),
            ("Instances", instances_line(status)),
            ("Projects", str(status.get("projects", 0))),
            ("Host", host_line(status)),
            ("Limits", _enforced(status)),
            ("Not enforced", _unenforced(out, status)),
            ("Estimated", estimated(status)),
            ("Reboot", _reboot(out, status)),
            ("Slice", str(status.get("slice") or "")),
            ("Settings", home(str(status.get("config_dir") or ""))),
            ("State", home(str(status.get("state_dir") or ""))),
            ("Worktrees", home(str(status.get("data_dir") or ""))),
            ("Run time", str(status.get("runtime_dir") or "")),
        ]
    )
    return 0


def instances_line(status: dict[str, Any]) -> str:
    """Return ``5 running of at most 10 (2 waiting, 3 working), 1 stopped``."""
    states: dict[str, int] = status.get("states") or {}
    running = [(state, states[state]) for state in URGENCY if states.get(state) and State(state).running]
    rest = [f"{states[state]} {state}" for state in (State.FAILED, State.STOPPED) if states.get(state)]
    most = status.get("max_instances")
    text = f"{sum(number for _, number in running)} running"
    if most:
        text += f" of at most {most}"
    if running:
        text += f" ({', '.join(f'{number} {state}' for state, number in running)})"
    return ", ".join([text, *rest])


def host_line(status: dict[str, Any]) -> str:
    """Return ``2.1G of 15G memory free, load 1.20, memory pressure 0.5%``."""
    parts = []
    if status.get("host_memory"):
        parts.append(f"{size(status.get('memory_available', 0))} of {size(status['host_memory'])} memory free")
    if "load" in status:
        parts.append(f"load {status['load']:.2f}")
    if status.get("memory_pressure"):
        parts.append(f"memory pressure {status['memory_pressure']:.1f}%")
    return ", ".join(parts)


def needs_line(status: dict[str, Any]) -> str:
    """Return ``2 instances, see 'ccorchctl'``, or "" when nobody waits for a person."""
    states: dict[str, int] = status.get("states") or {}
    number = sum(states.get(state, 0) for state in (State.WAITING, State.FAILED))
    return f"{count(number, 'instance')}; 'ccorchctl' shows which, and what to type" if number else ""


def _enforced(status: dict[str, Any]) -> str:
    words = controller_words(status.get("enforced") or ())
    return f"{words}: the kernel enforces them" if words else ""


def _unenforced(out: Output, status: dict[str, Any]) -> str:
    words = unenforced_words(status)
    return out.paint(f"{words} ('ccorchctl doctor' says why)", "yellow") if words else ""


def estimated(status: dict[str, Any]) -> str:
    """Return which figures are no accounts of the kernel's here, and where they come from; "" where all are."""
    missing = status.get("unenforced") or ()
    words = controller_words(name for name in ("memory", "pids") if name in missing)
    return f"{words}, added up from the processes at each sample" if words else ""


def _reboot(out: Output, status: dict[str, Any]) -> str:
    linger, enabled = status.get("linger"), status.get("enabled")
    if linger is None and enabled is None:
        return ""
    if linger and enabled:
        return "instances come back (lingering on, unit enabled)"
    off = [name for name, on in (("lingering", linger), ("the unit", enabled)) if not on]
    what = f"{' and '.join(off)} {'is' if len(off) == 1 else 'are'} off"
    return out.paint(f"instances stay down: {what} ('ccorchctl init' turns it on)", "yellow")


_MARK: Final = {"ok": ("ok", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "red")}


def print_checks(out: Output, checks: list[dict[str, Any]], *, only_trouble: bool = False) -> None:
    """Print findings, each with its hint on a line below; with *only_trouble* the good ones only as a number."""
    shown = [check for check in checks if not only_trouble or check.get("result") != "ok"]
    widest = max((len(str(check["name"])) for check in shown), default=0)
    for check in shown:
        word, colour = _MARK.get(str(check.get("result")), (str(check.get("result")), ""))
        mark = out.paint(f"{word:<4}", colour)
        head = f"{mark}  {printable(str(check['name'])):<{widest}}  "
        told = out.wrapped(one_line(str(check.get("message", ""))), indent=widest + 8)
        if check.get("hint") and check.get("result") != "ok":
            told += out.wrapped(one_line(str(check["hint"])), indent=widest + 8)
        for line in told:
            out.line(head + line)
            head = " " * (widest + 8)
    if only_trouble and len(shown) < len(checks):
        out.note(f"{count(len(checks) - len(shown), 'check')} of this machine passed.")


async def run_doctor(context: Context) -> int:
    try:
        checks = await (await context.client()).doctor()
    except Failure as failure:
        # The one finding that the daemon cannot report itself.
        if failure.code not in (NO_BUS, NOT_RUNNING, ErrorCode.TIMEOUT):
            raise
        name = "bus" if failure.code == NO_BUS else "daemon"
        checks = [{"name": name, "result": "fail", "message": failure.message, "hint": failure.hint}]
    failed = sum(check.get("result") == "fail" for check in checks)
    warned = sum(check.get("result") == "warn" for check in checks)
    if context.out.human:
        print_checks(context.out, checks)
        context.out.note("")
        good = len(checks) - failed - warned
        context.out.note(f"{count(len(checks), 'check')}: {good} ok, {count(warned, 'warning')}, {failed} failed.")
    else:
        context.out.data([machine(check, CHECK_FIELDS) for check in checks])
    return int(Exit.FAILURE) if failed else 0


async def run_reload(context: Context) -> int:
    await (await context.client()).reload()
    context.out.note("Settings read again.")
    return 0


async def run_shutdown(context: Context) -> int:
    client = await context.client(no_autostart=True)
    if not await client.running():
        context.out.note("The daemon is not running.")
        return 0
    running = [record for record in await client.instances() if State(str(record["state"])).running]
    question = f"Stop {count(len(running), 'running instance')} and the daemon?" if running else "Stop the daemon?"
    prompts.require(question, yes=context.options.yes)
    await client.shutdown()
    if running:
        context.out.note(
            f"{count(len(running), 'instance')} stopped, the daemon too. "
            "Work stays in the worktrees; 'ccorchctl start --all' goes on with it."
        )
    else:
        context.out.note("The daemon has stopped; the next command that needs it starts it again.")
    return 0


async def run_version(context: Context) -> int:
    daemon: dict[str, Any] = {}
    try:
        client = await context.client(no_autostart=True)
        if await client.running():
            daemon = await client.properties()
    except Failure as failure:
        if failure.code not in (NO_BUS, NOT_RUNNING):
            raise
    if not context.out.human:
        versions = {
            "ccorchctl": __version__,
            "ccorchd": daemon.get("Version"),
            "api": API_VERSION,
            "daemon_api": daemon.get("ApiVersion"),
        }
        context.out.data(versions)
        return 0
    context.out.line(f"ccorchctl {__version__}")
    context.out.line(f"ccorchd {daemon['Version']}" if daemon else "ccorchd (not running)")
    if daemon and daemon.get("ApiVersion") != API_VERSION:
        context.out.warn(
            f"The daemon speaks version {daemon.get('ApiVersion')} of the API and ccorchctl version {API_VERSION}: "
            f"systemctl --user restart {context.naming.daemon_unit}"
        )
    return 0

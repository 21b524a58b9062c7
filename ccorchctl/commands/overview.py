# SPDX-License-Identifier: LGPL-2.1-or-later
"""Bare ``ccorchctl``: one screen: what needs somebody, who works on what, what it uses, and what to type next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ccorchctl.commands.host import host_line, instances_line
from ccorchctl.commands.view import COLUMNS, in_order
from ccorchctl.context import Context
from ccorchctl.output import Column, age, count, doing_text, machine, size, state_text, unenforced_words
from ccorchd.contract import INSTANCE_FIELDS, PROJECT_FIELDS, State

MOST = 12
"""Rows of each table; more would push the line that matters off the screen."""


def _command(record: Mapping[str, Any]) -> str:
    """Return the command that helps most with an instance that needs somebody."""
    verb = "why" if record["state"] == State.FAILED else "attach"
    return f"ccorchctl {verb} {record['address']}"


NEEDS = (
    Column("INSTANCE", lambda r: str(r["address"]), least=24, key=True),
    Column("STATE", state_text, colour=lambda r: "red" if r["state"] == State.FAILED else "yellow"),
    Column("SINCE", lambda r: age(r.get("since")), drop=2),
    Column("WHAT", doing_text, least=14, drop=1),
    Column("TYPE", _command, drop=3, colour=lambda _: "bold"),
)


async def run(context: Context) -> int:
    client, out = await context.client(), context.out
    status = await client.status()
    records = in_order(await client.instances())
    projects = await client.projects()
    if not out.human:
        out.data(
            {
                "status": machine(status),
                "instances": [machine(record, INSTANCE_FIELDS) for record in records],
                "projects": [machine(project, PROJECT_FIELDS) for project in projects],
            }
        )
        return 0
    needs = [r for r in records if r["state"] in (State.WAITING, State.FAILED)]
    others = [r for r in records if r not in needs]
    if needs:
        out.line(out.paint(f"Needs you ({len(needs)})", "yellow"))
        _table(context, needs, NEEDS, "--state waiting,failed")
        out.line()
    if others:
        if needs:
            out.line("The others" if len(others) > 1 else "The other one")
        _table(context, others, [column for column in COLUMNS if column.title != "BRANCH"], "")
        out.line()
    if not records:
        out.line(f"No instances yet, {count(len(projects), 'project')}." if projects else "Nothing here yet.")
        out.line()
    out.fields(
        [
            ("Instances", instances_line(status) if records else ""),
            ("They use", _usage(records)),
            ("Host", host_line(status)),
            ("Not enforced", _unenforced(status)),
        ]
    )
    out.line()
    out.line(f"Next: {out.paint(await _next(context, records, projects, needs), 'bold')}")
    return 0


def _table(context: Context, records: list[dict[str, Any]], columns: Sequence[Column], choice: str) -> None:
    """Print as many rows as leave room for the rest of the screen, and how to see the others."""
    out = context.out
    shown = records if context.options.full else records[:MOST]
    out.table(shown, columns)
    if len(records) > len(shown):
        out.line(f"{out.ellipsis} {len(records) - len(shown)} more: {f'ccorchctl list {choice}'.strip()}")


def _usage(records: list[dict[str, Any]]) -> str:
    known = [r for r in records if r.get("memory_current") is not None]
    if not known:
        return ""
    tasks = sum(int(r.get("tasks_current") or 0) for r in known)
    estimate = " (estimated)" if any(r.get("measured") == "processes" for r in known) else ""
    return f"{size(sum(int(r['memory_current']) for r in known))} memory{estimate}, {count(tasks, 'task')}"


def _unenforced(status: Mapping[str, Any]) -> str:
    words = unenforced_words(dict(status))
    return f"limits of {words} ('ccorchctl doctor' says why)" if words else ""


async def _next(
    context: Context, records: list[dict[str, Any]], projects: list[dict[str, Any]], needs: list[dict[str, Any]]
) -> str:
    """Return the one command that gets things on best now."""
    if needs:
        return _command(needs[0])
    idle = [r for r in records if r["state"] == State.IDLE]
    if idle:
        return f"ccorchctl diff {idle[0]['address']}    (it is idle: look at its work)"
    working = [r for r in records if State(str(r["state"])).running]
    if working:
        return f"ccorchctl attach {working[0]['address']}    (Ctrl-b d leaves it running)"
    if records:
        return f"ccorchctl start {records[0]['address']}    (goes on with its session)"
    if projects and await context.here():
        return 'ccorchctl try "what should be done"'
    if projects:
        return f'cd {projects[0]["repository"]} && ccorchctl try "what should be done"'
    return "ccorchctl init    (in a git repository; 'ccorchctl --help' shows the rest)"

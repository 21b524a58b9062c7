# SPDX-License-Identifier: LGPL-2.1-or-later
"""``init``: make a repository a project, and this machine fit for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ccorchctl import prompts
from ccorchctl.commands import Verbs, project
from ccorchctl.commands.host import print_checks
from ccorchctl.context import Context
from ccorchctl.output import count, home, machine, one_line
from ccorchd.contract import CHECK_FIELDS, PROJECT_FIELDS

if TYPE_CHECKING:
    from ccorchctl.client import Client

PROJECT_FILE: Final = ".ccorch.toml"

TEMPLATE: Final = """\
# Settings of ccorch for this project. Everything is optional; remove the # in front of what you want.
# ccorch reads this file from the main checkout, never from an agent's worktree.

# What runs in an instance: "claude", "demo" (a stand-in that needs no account), or an agent from ccorchd.toml.
#agent = "claude"

# Where the branch of a new instance begins. Without it: what the main checkout has checked out.
#base = "origin/main"

# Each instance has a port of its own; this variable tells it which.
#port_variable = "PORT"

# Commands that run in each new worktree, in this order, before the agent starts. They run with your rights, so
# ccorch asks for your agreement once, and again when they change: ccorchctl project agree
#[setup]
#steps = ["npm ci", "make deps"]

# Variables for every instance. No secrets here: ccorchctl secret set NAME
#[environment]
#DATABASE_URL = "sqlite:///dev.db"

# Limits of every instance, as in systemd.resource-control(5). Sizes: 512M, 2G, or 25% of the host's memory.
#[instances.limits]
#memory_max = "2G"
#memory_high = "1800M"
#cpu_quota = "200%"
#cpu_weight = 100
#tasks_max = 1024
"""
"""What ``init`` writes. Untracked files that worktrees need (.env and the like) are named in .worktreeinclude."""


def add(verbs: Verbs) -> None:
    parser = verbs.verb(
        "init",
        run_init,
        "make a git repository a project, and check this machine",
        example="init ~/src/shop",
        description="Make a git repository a project: register it, write a commented .ccorch.toml if it has none, "
        "check this machine, and turn on what lets instances survive a log-out and a reboot. Harmless to repeat.",
    )
    parser.add_argument("path", metavar="PATH", nargs="?", default=".", help="the repository (default: this folder)")
    parser.add_argument("--name", metavar="NAME", help="name of the project (default: the folder's)")


async def run_init(context: Context) -> int:
    client = await context.client()
    row, checks, changes, wrote = await initialise(context, client, context.options.path, context.options.name or "")
    name = str(row["name"])
    if not context.out.human:
        context.out.data(
            {
                "project": machine(row, PROJECT_FIELDS),
                "wrote": wrote,
                "checks": [machine(check, CHECK_FIELDS) for check in checks],
                "changes": changes,
            }
        )
        return 0
    failed = sum(check.get("result") == "fail" for check in checks)
    if failed:
        context.out.note(f"Next: mend what failed above ({count(failed, 'check')}), then 'ccorchctl doctor'")
    elif row.get("setup") and not row.get("setup_agreed"):
        context.out.note(f"Next: ccorchctl project agree {name}")
    else:
        context.out.note(f"Next: {try_command(checks, await _default_agent(client))}")
    return 0


async def initialise(
    context: Context, client: Client, path: str, name: str = ""
) -> tuple[dict[str, Any], list[dict[str, Any]], list[str], str | None]:
    """Register *path* and prepare project and host, telling about each step.

    Returns the project's record, doctor's findings, what was turned on, and the file that was written (or None).
    """
    out = context.out
    row, known = await project.register(context, client, project.folder(path), name)
    out.note(f"Project {row['name']}: {home(str(row['repository']))}{' (registered already)' if known else ''}")
    wrote = _write_template(context, Path(str(row["repository"])))
    changes = await client.prepare_host()
    for sentence in changes:
        out.note(_sentence(sentence))
    checks = await client.doctor()
    if out.human:
        print_checks(out, checks, only_trouble=True)
    asks = row.get("setup") and not row.get("setup_agreed") and not project.broken(row)
    if asks and (context.options.yes or prompts.interactive()):
        if await project.agree(context, client, row):
            out.note("Agreed.")
        row = await client.project(str(row["name"]))
    return row, checks, changes, wrote


def _sentence(text: str) -> str:
    text = one_line(text)
    return text[:1].upper() + text[1:]


def try_command(checks: list[dict[str, Any]], default: str) -> str:
    """Return the command that a newcomer can type next: with the demo where the *default* agent would not run."""
    lacking = {str(check["name"]) for check in checks if check.get("result") != "ok"}
    choice = "--agent demo " if f"agent {default}" in lacking and "agent demo" not in lacking else ""
    return f'ccorchctl try {choice}"what should be done"'


async def _default_agent(client: Client) -> str:
    return next((str(row["value"]) for row in await client.settings() if row["key"] == "instances.agent"), "").strip(
        '"'
    )


def _write_template(context: Context, repository: Path) -> str | None:
    path = repository / PROJECT_FILE
    try:
        # Exclusively: a file of the user's, or a link he has put there, is never written over.
        with open(
            os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "w", encoding="utf-8"
        ) as file:
            file.write(TEMPLATE)
    except FileExistsError:
        return None
    except OSError as error:
        context.out.warn(f"{home(str(path))} was not written ({error.strerror}); ccorch works without it.")
        return None
    context.out.note(f"Wrote {home(str(path))}: all commented out, yours to edit and commit")
    return str(path)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""``worktree``: where the work lies, and how far each branch has come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ccorchctl.commands import Verbs
from ccorchctl.context import Context
from ccorchctl.output import STATE_COLOUR, Column, home, machine, one_line, pad, width
from ccorchd.contract import WORKTREE_FIELDS


def add(verbs: Verbs) -> None:
    noun = verbs.noun("worktree", "show the worktrees of instances and their branches", example="worktree list")
    parser = noun.verb(
        "list",
        run_list,
        "list worktrees: branch, commits ahead and behind, uncommitted changes",
        example="worktree list",
    )
    parser.add_argument(
        "project", metavar="PROJECT", nargs="?", help="only this project's; '.' is the one of this folder"
    )
    parser = noun.verb("tree", run_tree, "draw projects with their worktrees as a tree", example="worktree tree shop")
    parser.add_argument(
        "project", metavar="PROJECT", nargs="?", help="only this project's; '.' is the one of this folder"
    )


def changes(row: Mapping[str, Any]) -> str:
    """Return ``missing``, ``uncommitted`` or ``clean``."""
    return "missing" if row.get("missing") else "uncommitted" if row.get("dirty") else "clean"


def _changes_colour(row: Mapping[str, Any]) -> str:
    return "red" if row.get("missing") else "yellow" if row.get("dirty") else ""


COLUMNS = (
    Column("INSTANCE", lambda row: f"{row['project']}/{row['instance']}", least=24, key=True),
    Column(
        "STATE",
        lambda row: str(row.get("state") or ""),
        drop=2,
        colour=lambda row: STATE_COLOUR.get(str(row.get("state")), ""),
    ),
    Column("BRANCH", lambda row: str(row.get("branch") or ""), least=14),
    Column("AHEAD", lambda row: str(row.get("ahead", "")), right=True),
    Column("BEHIND", lambda row: str(row.get("behind", "")), right=True, drop=3),
    Column("CHANGES", changes, colour=_changes_colour),
    Column("PATH", lambda row: home(str(row.get("path") or "")), least=16, drop=4, left=True),
)


async def _rows(context: Context) -> list[dict[str, Any]]:
    project = context.options.project
    name = await context.project_name(project) if project else ""
    rows = await (await context.client()).worktrees(name)
    return sorted(rows, key=lambda row: (str(row["project"]), str(row["instance"])))


async def run_list(context: Context) -> int:
    rows = await _rows(context)
    if context.out.human:
        context.out.table(rows, COLUMNS, empty="No worktrees. An instance makes one: ccorchctl create NAME")
    else:
        context.out.data([machine(row, WORKTREE_FIELDS) for row in rows])
    return 0


async def run_tree(context: Context) -> int:
    rows = await _rows(context)
    out = context.out
    projects: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        projects.setdefault(str(row["project"]), []).append(row)
    if not out.human:
        tree = [
            {"project": name, "worktrees": [machine(row, WORKTREE_FIELDS) for row in group]}
            for name, group in projects.items()
        ]
        out.data(tree)
        return 0
    if not rows:
        out.note("No worktrees. An instance makes one: ccorchctl create NAME")
        return 0
    repositories = {
        str(record["name"]): str(record["repository"]) for record in await (await context.client()).projects()
    }
    names = [width(one_line(str(row["instance"]))) for row in rows]
    branches = [width(one_line(str(row.get("branch") or ""))) for row in rows]
    middle, end = ("├─", "└─") if out.encodes("├└─") else ("|-", "`-")
    for name, group in projects.items():
        out.fitted(f"{name}  {home(repositories.get(name, ''))}")
        for row in group:
            line = "  ".join(
                [
                    f"{end if row is group[-1] else middle} {pad(one_line(str(row['instance'])), max(names))}",
                    pad(one_line(str(row.get("branch") or "")), max(branches)),
                    f"{_distance(row):<8}  {row.get('state') or '':<8}",
                    "" if changes(row) == "clean" else changes(row),
                ]
            )
            out.fitted(line.rstrip())
    return 0


def _distance(row: Mapping[str, Any]) -> str:
    return f"+{row.get('ahead', 0)} -{row.get('behind', 0)}"

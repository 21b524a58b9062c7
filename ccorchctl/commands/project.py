# SPDX-License-Identifier: LGPL-2.1-or-later
"""``project``: registered repositories, and the agreement to their set-up steps."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ccorchctl import prompts
from ccorchctl.commands import Verbs
from ccorchctl.context import Context
from ccorchctl.failures import Failure, printable, usage
from ccorchctl.output import Column, age, clean, home, machine, stamp
from ccorchd.contract import PROJECT_FIELDS, ErrorCode

if TYPE_CHECKING:
    from ccorchctl.client import Client


def add(verbs: Verbs) -> None:
    noun = verbs.noun("project", "add, show and remove projects, agree to their set-up steps", example="project list")
    noun.verb("list", run_list, "list projects", example="project list")
    parser = noun.verb(
        "add",
        run_add,
        "register a git repository as a project, and do nothing else",
        example="project add ~/src/shop --name shop",
        description="Register a git repository as a project, and do nothing else: no file is written, nothing is "
        "turned on. 'ccorchctl init' does the rest, now or later.",
    )
    parser.add_argument("path", metavar="PATH", help="the repository, or a folder in it")
    parser.add_argument("--name", metavar="NAME", help="name of the project (default: the folder's)")
    here = "name of the project (default: the one of this folder)"
    parser = noun.verb("show", run_show, "show a project: repository and set-up steps", example="project show shop")
    parser.add_argument("name", metavar="PROJECT", nargs="?", help=here)
    parser = noun.verb(
        "agree",
        run_agree,
        "agree to the set-up steps of a project's .ccorch.toml",
        example="project agree shop",
        description="Show the set-up steps of a project's .ccorch.toml and agree to them. They are commands that run "
        "in each new worktree, with your rights; until you agreed, and again after they change, no instance starts.",
    )
    parser.add_argument("name", metavar="PROJECT", nargs="?", help=here)
    parser = noun.verb(
        "remove",
        run_remove,
        "forget a project without instances; the repository is not touched",
        example="project remove shop --yes",
    )
    parser.add_argument("name", metavar="PROJECT", help="name of the project")


def broken(row: Any) -> str:
    """Return what is wrong with the project's .ccorch.toml, or "": then there are lines, and nothing to agree to."""
    lines = row.get("setup") or ()
    return str(lines[0]) if lines and not row.get("setup_hash") and not row.get("setup_agreed") else ""


def _setup(row: Any) -> str:
    if not row.get("setup"):
        return "none"
    if broken(row):
        return "ERROR"
    return "agreed" if row.get("setup_agreed") else "NOT AGREED"


COLUMNS = (
    Column("PROJECT", lambda row: str(row["name"])),
    Column("INSTANCES", lambda row: str(row.get("instances", 0)), right=True),
    Column("SET-UP", _setup, colour=lambda row: "yellow" if row.get("setup") and not row.get("setup_agreed") else ""),
    Column("CREATED", lambda row: age(row.get("created")), drop=1),
    Column("REPOSITORY", lambda row: home(str(row["repository"])), least=20, left=True),
)


async def run_list(context: Context) -> int:
    rows = sorted(await (await context.client()).projects(), key=lambda row: str(row["name"]))
    if context.out.human:
        context.out.table(rows, COLUMNS, empty="No projects. In a git repository: ccorchctl init")
    else:
        context.out.data([machine(row, PROJECT_FIELDS) for row in rows])
    return 0


def folder(path: str) -> str:
    """Return *path* as an absolute path; raise a usage failure if it is no folder."""
    found = os.path.abspath(os.path.expanduser(path))
    if not os.path.isdir(found):
        raise usage(f"{found!r} is no folder")
    return found


async def register(context: Context, client: Client, path: str, name: str) -> tuple[dict[str, Any], bool]:
    """Return the record of the project that *path* belongs to, registered now if it was not, and whether it was.

    Raises ``ProjectExists`` when it is one of another name than *name* ("": any).
    """
    row = await client.find_project(path)
    if row is None:
        created = await client.register_project(path, name)
        return next(record for record in await client.projects() if record["object"] == created), False
    if name and row["name"] != name:
        raise Failure(
            ErrorCode.PROJECT_EXISTS,
            f"{home(str(row['repository']))} is the project {row['name']} already; projects are never renamed",
            "Once it has no instances, 'ccorchctl project remove' forgets it; then add it under the other name.",
        )
    return await client.project(str(row["name"])), True


async def run_add(context: Context) -> int:
    path = folder(context.options.path)
    row, known = await register(context, await context.client(), path, context.options.name or "")
    if not context.out.human:
        context.out.data(machine(row, PROJECT_FIELDS))
        return 0
    context.out.note(f"Project {row['name']}: {home(str(row['repository']))}{' (registered already)' if known else ''}")
    if error := broken(row):
        context.out.warn(f"Its .ccorch.toml cannot be used: {printable(error)}")
    elif row.get("setup") and not row.get("setup_agreed"):
        context.out.note(f"Next: ccorchctl project agree {row['name']}")
    return 0


async def run_show(context: Context) -> int:
    client = await context.client()
    row = await client.project(await context.project_name(context.options.name))
    out = context.out
    if not out.human:
        out.data(machine(row, PROJECT_FIELDS))
        return 0
    created = row.get("created")
    out.fields(
        [
            ("Project", out.paint(str(row["name"]), "bold")),
            ("Repository", clean(str(row["repository"]))),
            ("Created", f"{stamp(created)} ({age(created)})" if created else ""),
            ("Instances", str(row.get("instances", 0))),
            ("Set-up", clean(broken(row)) or _setup(row)),
        ]
    )
    if broken(row):
        return 0
    print_steps(context, row)
    if row.get("setup") and not row.get("setup_agreed"):
        out.note(f"Agree to them: ccorchctl project agree {row['name']}")
    return 0


def print_steps(context: Context, row: dict[str, Any]) -> None:
    """Print the set-up steps in full, one to a line, as they would run; control characters are shown escaped."""
    for number, step in enumerate(row.get("setup") or (), 1):
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(step))
        # In a form for machines standard output is theirs; what somebody is asked to agree to must show all the same.
        print(f"  {number}. {shown}", file=context.out.stream if context.out.human else context.out.notes)


async def agree(context: Context, client: Client, row: dict[str, Any]) -> bool:
    """Show the steps and have the user agree; return False for a no, raise SetupNotAgreed if nobody can be asked."""
    if error := broken(row):
        raise Failure(ErrorCode.CONFIG_INVALID, error, "Mend the file; then it shows what there is to agree to.")
    context.out.note(f"Set-up steps of {row['name']}, from .ccorch.toml in {home(str(row['repository']))}:")
    print_steps(context, row)
    if not context.options.yes:
        if not prompts.interactive():
            raise Failure(
                ErrorCode.SETUP_NOT_AGREED,
                f"the set-up steps of {row['name']} need your agreement, and standard input is no terminal",
                f"Read them, then: ccorchctl project agree {row['name']} --yes",
            )
        if not prompts.confirm("Run these commands in each new worktree?"):
            return False
    await client.agree_setup(str(row["object"]), str(row.get("setup_hash", "")))
    return True


async def run_agree(context: Context) -> int:
    client = await context.client()
    row = await client.project(await context.project_name(context.options.name))
    if not row.get("setup"):
        context.out.note(f"{row['name']} has no set-up steps.")
    elif row.get("setup_agreed"):
        context.out.note(f"You have agreed to the set-up steps of {row['name']} already.")
    elif await agree(context, client, row):
        context.out.note("Agreed.")
    else:
        raise Failure(ErrorCode.NOT_ALLOWED, "not agreed; nothing was done")
    return 0


async def run_remove(context: Context) -> int:
    client = await context.client()
    row = await client.project(context.options.name)
    prompts.require(
        f"Forget the project {row['name']} ({home(str(row['repository']))} is not touched)?", yes=context.options.yes
    )
    await client.remove_project(str(row["object"]))
    context.out.note(f"Project {row['name']} removed; {home(str(row['repository']))} is as it was.")
    return 0

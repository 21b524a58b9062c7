# SPDX-License-Identifier: LGPL-2.1-or-later
"""``config``: the daemon's settings as they are in effect. They are changed by editing the file."""

from __future__ import annotations

import difflib
import json
import re
from typing import Any

from ccorchctl.commands import Verbs
from ccorchctl.context import Context
from ccorchctl.failures import Failure
from ccorchctl.output import Column, home, machine
from ccorchd.contract import SETTING_FIELDS, ErrorCode, Exit


def add(verbs: Verbs) -> None:
    noun = verbs.noun(
        "config", "show the daemon's settings and where they come from", example="config get instances.max"
    )
    noun.verb("list", run_list, "list all settings: value in effect, and its source", example="config list")
    parser = noun.verb("get", run_get, "print the value of one setting", example="config get instances.max")
    parser.add_argument("key", metavar="KEY", help="section and name, for example instances.max")
    noun.verb(
        "path",
        run_path,
        "print the path of the settings file",
        example='config path; "$EDITOR" "$(ccorchctl config path)"',
    )
    noun.verb(
        "default",
        run_default,
        "print a settings file with every setting, its default and its meaning, all commented out",
        example='config default > "$(ccorchctl config path)"',
    )


COLUMNS = (
    Column("KEY", lambda row: str(row["key"])),
    Column("VALUE", lambda row: str(row["value"]) or '""', least=8),
    Column("FROM", lambda row: home(str(row["source"])), least=12),
    Column("MEANING", lambda row: str(row["help"]), least=20, drop=1),
)


async def run_list(context: Context) -> int:
    rows = await (await context.client()).settings()
    if context.out.human:
        context.out.table(rows, COLUMNS)
    else:
        context.out.data([machine(row, SETTING_FIELDS) for row in rows])
    return 0


async def run_get(context: Context) -> int:
    rows = await (await context.client()).settings()
    key = context.options.key
    for row in rows:
        if row["key"] == key:
            if context.out.human:
                context.out.line(str(row["value"]))
            else:
                context.out.data(machine(row, SETTING_FIELDS))
            return 0
    near = difflib.get_close_matches(key, [str(row["key"]) for row in rows], 1, 0.4)
    raise Failure(
        ErrorCode.INVALID_ARGUMENT,
        f"there is no setting {key!r}",
        f"Did you mean {near[0]}?" if near else "See 'ccorchctl config list'.",
        status=Exit.NOT_FOUND,
    )


async def run_path(context: Context) -> int:
    path = context.naming.config_dir / "ccorchd.toml"
    if context.out.human:
        context.out.line(str(path))
    else:
        context.out.data({"path": str(path), "exists": path.exists()})
    return 0


async def run_default(context: Context) -> int:
    rows = await (await context.client()).settings()
    context.out.line("# Settings of ccorchd. Remove the # in front of what you want to change, then: ccorchctl reload")
    section = ""
    for row in sorted(rows, key=lambda row: str(row["key"]).partition(".")[0]):
        head, _, name = str(row["key"]).partition(".")
        if head != section:
            section = head
            context.out.line(f"\n[{section}]")
        context.out.line(f"# {row['help']}")
        context.out.line(f"#{name} = {toml(str(row['default']))}")
    return 0


def toml(text: str) -> str:
    """Return a setting's default, which travels as text, as a TOML value: numbers, booleans and lists as they are."""
    if re.fullmatch(r"[+-]?\d+(\.\d+)?|true|false|\[.*\]", text):
        return text
    # A JSON string is a TOML basic string, except that TOML has no \/ and JSON never writes it.
    value: Any = json.dumps(text, ensure_ascii=False)
    return str(value)

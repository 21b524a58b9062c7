# SPDX-License-Identifier: LGPL-2.1-or-later
"""``secret``: tokens and keys that agents need. A value is typed or piped in, never part of a command line."""

from __future__ import annotations

import sys

from ccorchctl import prompts
from ccorchctl.commands import Verbs
from ccorchctl.context import Context
from ccorchctl.failures import usage


def add(verbs: Verbs) -> None:
    noun = verbs.noun(
        "secret",
        "keep keys and tokens for agents, in the desktop's keyring or an encrypted file",
        example="secret list",
    )
    noun.verb("list", run_list, "list the names of stored secrets; values are never shown", example="secret list")
    parser = noun.verb(
        "set",
        run_set,
        "store a secret",
        example="secret set anthropic-api-key < key.txt",
        description="Store a secret. The value is asked for without showing it, or read from standard input when that "
        "is no terminal (without the line end). It cannot be given as an argument: other users could see it there.",
    )
    parser.add_argument("name", metavar="NAME", help="name of the secret")
    parser = noun.verb("remove", run_remove, "forget a secret", example="secret remove anthropic-api-key")
    parser.add_argument("name", metavar="NAME", help="name of the secret")


async def run_list(context: Context) -> int:
    names = sorted(await (await context.client()).secrets())
    if not context.out.human:
        context.out.data([{"name": name} for name in names])
        return 0
    for name in names:
        context.out.line(name)
    if not names:
        context.out.note("No secrets stored. Store one: ccorchctl secret set NAME")
    return 0


async def run_set(context: Context) -> int:
    name = context.options.name
    if sys.stdin.isatty():
        value = prompts.secret(f"Value of {name}:")
    else:
        value = sys.stdin.read().removesuffix("\n").removesuffix("\r")
        if not value:
            raise usage("standard input holds no value", f"Pipe it in: ccorchctl secret set {name} < FILE")
    await (await context.client()).set_secret(name, value)
    context.out.note(f"Secret {name} stored.")
    return 0


async def run_remove(context: Context) -> int:
    name = context.options.name
    client = await context.client()
    prompts.require(f"Forget the secret {name}?", yes=context.options.yes)
    await client.remove_secret(name)
    context.out.note(f"Secret {name} removed.")
    return 0

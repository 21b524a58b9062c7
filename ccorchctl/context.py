# SPDX-License-Identifier: LGPL-2.1-or-later
"""What every command has at hand: its options, the output, and a client that connects on first use."""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ccorchctl.failures import Failure, render, usage
from ccorchctl.output import Output
from ccorchd.contract import SUFFIX_VARIABLE, ErrorCode, Naming

if TYPE_CHECKING:
    from ccorchctl.client import Client


@dataclass(frozen=True, slots=True)
class Exec:
    """What a command may return in place of an exit status: the program that takes over the terminal."""

    argv: list[str]
    environment: dict[str, str]


@dataclass(frozen=True, slots=True)
class Target:
    """An instance found on the bus."""

    address: str
    object: str


class Context:
    """One run of ccorchctl. Close it when done."""

    def __init__(self, options: argparse.Namespace, output: Output) -> None:
        self.options = options
        self.out = output
        try:
            self.naming = Naming.from_environment()
        except ValueError as error:
            raise usage(f"{error}", f"Unset or correct {SUFFIX_VARIABLE}.") from None
        self._client: Client | None = None

    async def client(self, *, no_autostart: bool = False) -> Client:
        """Return the client, connecting first if need be; *no_autostart* counts for the first call only."""
        if self._client is None:
            from ccorchctl.client import Client  # half of a command's start-up time: not for --help

            if self.options.system:
                raise Failure(
                    ErrorCode.NOT_ALLOWED,
                    "--system is for the shared-host deployment, which this version does not have yet",
                    "Leave --system out to reach your own daemon.",
                )
            self._client = await Client.connect(
                self.naming,
                no_autostart=no_autostart or self.options.no_autostart,
                timeout=None if getattr(self.options, "own_timeout", False) else self.options.timeout,
            )
        return self._client

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    # ---------------------------------------------------------------- addresses

    async def here(self) -> dict[str, Any] | None:
        """Return the working directory's project (with ``instance`` in an instance's worktree), or None."""
        try:
            folder = os.getcwd()
        except FileNotFoundError:
            return None
        return await (await self.client()).find_project(folder)

    async def project_name(self, text: str | None) -> str:
        """Return *text*, or the project of the working directory; ``.`` means the latter too."""
        if text and text != ".":
            return text
        if record := await self.here():
            return str(record["name"])
        raise Failure(
            ErrorCode.NO_SUCH_PROJECT,
            "this folder belongs to no project of ccorch",
            "Name a project (see 'ccorchctl project list'), or make this repository one: ccorchctl init",
        )

    async def address(self, text: str | None) -> str:
        """Return ``project/name`` for what the user typed; nothing typed means the instance whose worktree this is.

        The address is not looked up: it may belong to an instance that was removed. Raises ``NoSuchInstance`` for a
        bare name that no instance has, and a usage failure that lists the candidates when several have it.
        """
        if text and "/" in text:
            if not all(text.partition("/")[::2]):
                raise usage(f"{text!r} is half an address", "Write project/name; see 'ccorchctl instance list'.")
            return text
        place = await self.here()
        if not text:
            if place and place.get("instance"):
                return f"{place['name']}/{place['instance']}"
            raise usage(
                "which instance? This folder is no instance's worktree",
                "Give project/name; see 'ccorchctl instance list'.",
            )
        if place:
            return f"{place['name']}/{text}"
        instances = await (await self.client()).instances()
        found = sorted(str(record["address"]) for record in instances if record.get("name") == text)
        if len(found) == 1:
            return found[0]
        if found:
            raise usage(f"{len(found)} projects have an instance named {text!r}", f"Write one of: {', '.join(found)}")
        near = difflib.get_close_matches(text, [str(record["name"]) for record in instances], 3)
        addresses = [str(record["address"]) for record in instances if record["name"] in near]
        hint = f"Did you mean {' or '.join(addresses)}?" if addresses else "See 'ccorchctl instance list'."
        raise Failure(ErrorCode.NO_SUCH_INSTANCE, f"there is no instance {text!r}", hint)

    async def target(self, text: str | None) -> Target:
        """Return the instance meant by *text*; raise ``NoSuchInstance`` if there is none."""
        address = await self.address(text)
        return Target(address, await (await self.client()).instance(address))

    async def targets(self, names: Sequence[str], *, every: bool = False) -> list[Target]:
        """Return the instances meant by *names*, each once; with *every*, all (of ``--project`` where it is given)."""
        client = await self.client()
        if every:
            if names:
                raise usage("--all and names exclude each other")
            project = getattr(self.options, "project", None)
            records = await client.instances(project=await self.project_name(project) if project else "")
            return [Target(str(record["address"]), str(record["object"])) for record in records]
        if not names:
            raise usage("which instance?", "Give project/name (or just the name in a project's checkout), or --all.")
        found: dict[str, Target] = {}
        for name in names:
            target = await self.target(name)
            found.setdefault(target.address, target)
        return list(found.values())

    async def each(self, targets: Sequence[Target], work: Callable[[Target], Awaitable[str]]) -> int:
        """Do *work* on all targets at once and print its sentence for each; one failing does not hold up the others.

        Returns the exit status of the first failure; failures go to standard error as they are.
        """
        if len(targets) == 1:
            self.out.note(await work(targets[0]))
            return 0
        import asyncio  # with what it imports, longer to load than all of ours: not for --help

        outcomes = await asyncio.gather(*(work(target) for target in targets), return_exceptions=True)
        status = 0
        for target, outcome in zip(targets, outcomes, strict=True):
            if isinstance(outcome, Failure):
                text = outcome if target.address in outcome.message else _prefixed(outcome, target.address)
                self.out.stream.flush()
                print(render(text, as_json=not self.out.human), end="", file=self.out.notes)
                status = status or int(outcome.status)
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                self.out.note(outcome)
        return status


def _prefixed(failure: Failure, address: str) -> Failure:
    return Failure(failure.code, f"{address}: {failure.message}", failure.hint, status=failure.status)

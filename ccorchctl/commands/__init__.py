# SPDX-License-Identifier: LGPL-2.1-or-later
"""The commands, one file per noun. Each has ``add(verbs)``, which declares its grammar, and coroutines that do it."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from ccorchctl.context import Context, Exec

Run: TypeAlias = "Callable[[Context], Awaitable[int | Exec | None]]"


class Verbs:
    """Declares verbs of one level of the command line, so that each has a description, an example and the options."""

    def __init__(self, actions: Any, finish: Callable[[argparse.ArgumentParser], None]) -> None:
        self._actions = actions
        self._finish = finish

    def verb(self, name: str, run: Run, help: str, *, example: str, description: str = "") -> argparse.ArgumentParser:
        """Add a verb that *run* carries out. *example* is one command line without the program's name.

        *help* is a phrase in small letters; *description* replaces it, as sentences, on the verb's own page.
        """
        parser: argparse.ArgumentParser = self._actions.add_parser(
            name,
            help=help,
            description=description or help[0].upper() + help[1:] + ".",
            epilog=f"Example: ccorchctl {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter if "\n" in description else argparse.HelpFormatter,
            allow_abbrev=False,
        )
        parser.set_defaults(run=run)
        self._finish(parser)
        return parser

    def noun(self, name: str, help: str, *, example: str) -> Verbs:
        """Add a noun and return its verbs."""
        parser = self._actions.add_parser(
            name,
            help=help,
            description=help[0].upper() + help[1:] + ".",
            epilog=f"Example: ccorchctl {example}",
            allow_abbrev=False,
        )
        self._finish(parser)
        actions = parser.add_subparsers(title="verbs", dest="verb", metavar="VERB", required=True)
        return Verbs(actions, self._finish)

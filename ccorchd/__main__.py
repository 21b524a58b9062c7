# SPDX-License-Identifier: LGPL-2.1-or-later
"""``ccorchd``: run the daemon. The only place of this package that exits."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys

from ccorchd import __version__
from ccorchd.contract import Naming
from ccorchd.daemon import Daemon
from ccorchd.errors import CcorchError

_CANNOT_START = 1
_WRONG_USE = 2


def build() -> argparse.ArgumentParser:
    """Return the parser; also what ccorchd(8) is made from."""
    parser = argparse.ArgumentParser(
        prog="ccorchd",
        description="Run a team of coding agents as systemd scopes. Started by systemd, or by D-Bus on the first "
        "ccorchctl call; not meant to be run by hand.",
        epilog="Settings: ccorchd.toml(5). Everything else: ccorchctl(1).",
    )
    parser.add_argument("--version", action="version", version=f"ccorchd {__version__}")
    parser.add_argument("--debug", action="store_true", help="log more")
    return parser


def main() -> None:
    """Parse, run, exit: 0 after a stop, 1 when it cannot start, 2 for wrong use."""
    arguments = build().parse_args()
    journal = "JOURNAL_STREAM" in os.environ
    logging.basicConfig(
        level=logging.DEBUG if arguments.debug else logging.INFO,
        format="%(levelname)s %(name)s: %(message)s" if not journal else "%(name)s: %(message)s",
        stream=sys.stderr,
    )
    if os.getuid() == 0:
        print("ccorchd: it never runs as root: what an agent does, it would do as root.", file=sys.stderr)
        print("Hint: run it as the user whose agents these are.", file=sys.stderr)
        sys.exit(_WRONG_USE)
    try:
        asyncio.run(Daemon(Naming.from_environment()).run())
    except (CcorchError, ValueError) as error:
        print(f"ccorchd: {error}", file=sys.stderr)
        if isinstance(error, CcorchError) and error.hint:
            print(f"Hint: {error.hint}", file=sys.stderr)
        sys.exit(_CANNOT_START)


if __name__ == "__main__":
    main()

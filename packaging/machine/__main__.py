# SPDX-License-Identifier: LGPL-2.1-or-later
"""``python3 packaging/machine``: boot, enter and stop throwaway machines by hand."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:
    # Run as a folder: Python has put the folder itself on the path, and the package is above it.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from machine.errors import MachineError, NotPossibleHere
from machine.nspawn import Machine, running
from machine.overlay import Bind, Spec, launch


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="packaging/machine", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    boot = verbs.add_parser("boot", help="boot a machine over the host's file system; it stays up until stop")
    boot.add_argument("name")
    boot.add_argument("--bind", action="append", default=[], metavar="DIR[:TARGET]")
    boot.add_argument("--user", default="dev")
    boot.add_argument("--private-network", action="store_true")
    enter = verbs.add_parser("run", help="run a command in a machine")
    enter.add_argument("name")
    enter.add_argument("--user", default="")
    enter.add_argument("command", nargs=argparse.REMAINDER)
    stop = verbs.add_parser("stop", help="shut a machine down and remove it")
    stop.add_argument("name")
    stop.add_argument("--force", action="store_true")
    verbs.add_parser("list", help="list machines that run")
    inner = verbs.add_parser("_launch")
    inner.add_argument("spec")
    return parser


def _named(name: str) -> Machine:
    machine = Machine.open(name)
    if machine is None:
        raise MachineError(f"No machine {name} is running.")
    return machine


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.verb == "_launch":
        try:
            launch(Spec.from_json(arguments.spec))
        except NotPossibleHere as error:
            print(f"not possible: {error}", file=sys.stderr)
            return 1
    elif arguments.verb == "boot":
        binds = []
        for text in arguments.bind:
            source, _, target = text.partition(":")
            binds.append(Bind(str(Path(source).resolve()), target))
        Machine.boot(arguments.name, binds=binds, user=arguments.user, network=not arguments.private_network)
    elif arguments.verb == "run":
        command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
        return _named(arguments.name).interactive(command or ["bash", "-l"], user=arguments.user)
    elif arguments.verb == "stop":
        _named(arguments.name).stop(force=arguments.force)
    else:
        print("\n".join(running()))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MachineError as error:
        sys.exit(f"{error}")

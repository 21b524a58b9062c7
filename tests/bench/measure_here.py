# SPDX-License-Identifier: LGPL-2.1-or-later
"""Measure here, as an ordinary user with a user manager: ``python3 measure_here.py RESULTS [--checkout FOLDER]``.

Uses the installed package, or with ``--checkout`` the programs of that folder, under a suffix of its own in any case.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def _use_checkout(checkout: Path, scratch: Path) -> None:
    """Let the daemon's unit and ``ccorchctl`` be those of *checkout*."""
    sys.path.insert(0, str(checkout))
    import daemons

    programs = scratch / "bin"
    programs.mkdir()
    for name in ("ccorchd", "ccorchctl"):
        program = programs / name
        program.write_text(f'#!/bin/sh\nPYTHONPATH={checkout} exec {sys.executable} -P -m {name} "$@"\n')
        program.chmod(0o755)
    os.environ["PATH"] = f"{programs}:{os.environ['PATH']}"
    unit = (checkout / "units/user/ccorchd.service").read_text(encoding="utf-8")
    daemons.INSTALLED_UNIT = scratch / "ccorchd.service"
    daemons.INSTALLED_UNIT.write_text(unit.replace("/usr/bin/ccorchd", str(programs / "ccorchd")), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--checkout", type=Path)
    parser.add_argument("--only", default="", help="measures by name, with commas between them")
    parser.add_argument("--rounds", type=float, default=1.0, help="factor for the number of runs")
    options = parser.parse_args()
    sys.path.insert(0, str(HERE.parent / "system"))
    sys.path.insert(0, str(HERE))
    with tempfile.TemporaryDirectory(prefix="ccorch-bench-") as name:
        if options.checkout:
            _use_checkout(options.checkout.resolve(), Path(name))
        from measures import MEASURES, Bench

        wanted = [word for word in options.only.split(",") if word] or list(MEASURES)
        bench = Bench(Path(name), options.rounds)
        try:
            rows = asyncio.run(bench.run(wanted))
        finally:
            bench.close()
    options.results.write_text(json.dumps([row.as_json() for row in rows], indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

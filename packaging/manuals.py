# SPDX-License-Identifier: LGPL-2.1-or-later
"""Make the manual pages: ``python3 packaging/manuals.py FOLDER``.

Pages of commands come from their argument parsers by argparse-manpage; those in man/ are written by hand and win.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

GENERATED = {
    "ccorchctl.1": ("ccorchctl/parser.py", "build", "control ccorch, which runs a team of coding agents"),
    "ccorch-web.8": ("web/parser.py", "build", "dashboard of ccorch"),
}
"""Page, file, the function in it that returns the parser, and what whatis(1) says."""


def generate(page: str, source: str, function: str, about: str, folder: Path) -> None:
    """Write one page; argparse-manpage's own version decides the finer points of its layout."""
    name, _, section = page.rpartition(".")
    target = folder / page
    command = ["argparse-manpage", "--pyfile", source, "--function", function]
    command += ["--project-name", "ccorch", "--output", str(target)]
    # The parser wraps text to the terminal it sees; troff does that itself.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "1000", "NO_COLOR": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    text = target.read_text(encoding="utf-8")
    # Old versions put every page into section 1, new ones date it with the day of the build.
    text = re.sub(
        r"^\.TH .*$", f'.TH {name.upper()} {section} "" ccorch "ccorch manual"', text, count=1, flags=re.MULTILINE
    )
    text = re.sub(r"^\.SH NAME\n.*$", rf".SH NAME\n{name} \- {about}", text, count=1, flags=re.MULTILINE)
    # It asks for an author's address and a download page, and prints the lack of them.
    text = re.sub(r"^\.SH (AUTHORS?|DISTRIBUTION)\n(?:(?!\.SH ).*\n?)*", "", text, flags=re.MULTILINE)
    target.write_text(text, encoding="utf-8")


def main(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    written = sorted((ROOT / "man").glob("*.[1-8]"))
    for page in written:
        shutil.copy(page, folder / page.name)
    for name, (source, function, about) in GENERATED.items():
        if name not in {page.name for page in written}:
            generate(name, source, function, about, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Make the manual pages: ``python3 packaging/manuals.py FOLDER``.

Pages of commands come from their argument parsers by argparse-manpage; those in man/ are written by hand and win.
"""

from __future__ import annotations

import ast
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
    # Each command becomes a subsection, all of them one section.
    text = re.sub(r"^\.SH OPTIONS '(.*)'$", r".SS \1", text, flags=re.MULTILINE)
    text = text.replace("\n.SS ccorch", "\n.SH COMMANDS\n.SS ccorch", 1)
    # Some versions print the parser's epilog as it stands, others drop it: it becomes sections in both cases.
    sections = _sections(source)
    if sections:
        text = re.sub(r"^\.SH COMMENTS\n(?:(?!\.SH ).*\n?)*", "", text, flags=re.MULTILINE)
        text = text.rstrip("\n") + "\n" + "".join(_section(title, body) for title, body in sections.items())
    target.write_text(text, encoding="utf-8")


def _sections(source: str) -> dict[str, str]:
    """Return what the parser's file *source* has as SECTIONS: title and text, indented by two."""
    tree = ast.parse((ROOT / source).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "SECTIONS" and node.value:
            found: dict[str, str] = ast.literal_eval(node.value)
            return found
    return {}


def _section(title: str, text: str) -> str:
    """Return a section of a page: lines of columns as tagged paragraphs, other lines as prose."""
    lines = [line.removeprefix("  ") for line in text.rstrip("\n").splitlines()]
    head = f".SH {title.upper()}\n"
    if title == "see also":
        names = re.findall(r"([\w.-]+)\((\d)\)(,?)", " ".join(lines))
        return head + "".join(f".BR {_escaped(name)} ({number}){comma}\n" for name, number, comma in names)
    entries: list[tuple[str, str]] = []
    prose: list[str] = []
    for line in lines:
        cells = re.split(r" {2,}", line)
        if len(cells) > 1:
            entries += zip(cells[::2], cells[1::2], strict=True)
        else:
            prose.append(_escaped(line))
    if all(left.isdigit() for left, _ in entries):
        entries.sort(key=lambda entry: int(entry[0]))
    tagged = "".join(f".TP\n\\fB{_escaped(left)}\\fR\n{_escaped(right)}\n" for left, right in entries)
    return head + tagged + (".PP\n" + "\n".join(prose) + "\n" if prose else "")


def _escaped(line: str) -> str:
    """Return *line* for troff: no hyphenation of options, no request by accident."""
    text = line.replace("\\", "\\e").replace("-", "\\-").replace("~", "\\(ti").replace("^", "\\(ha")
    return "\\&" + text if text.startswith((".", "'")) else text


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

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The table of settings as texts to read: ccorchd.toml(5), the table in docs/settings.md, and a file to start from."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable

from ccorchd.settings import FILE_NAME, SECTION_HELP, SECTIONS, SETTINGS, show


def default_text() -> str:
    """Return a ccorchd.toml with every setting explained and commented out, so that it changes nothing as it is."""
    lines = [
        "# Settings of ccorchd; see ccorchd.toml(5). Each line below shows a default: take away the # to change it.",
        f"# Files {FILE_NAME}.d/*.toml are read after this one, in the order of their names.",
    ]
    for section in SECTIONS:
        lines += ["", f"# {SECTION_HELP[section]}", f"[{section}]"]
        for setting in SETTINGS:
            if setting.section != section:
                continue
            lines.append("")
            lines += textwrap.wrap(setting.help, 110, initial_indent="# ", subsequent_indent="# ")
            note = "" if setting.reload else "; a change takes a restart of the daemon"
            lines += textwrap.wrap(f"({setting.allowed()}{note})", 110, initial_indent="# ", subsequent_indent="# ")
            lines.append(f"#{setting.name} = {show(setting.default)}")
    return "\n".join(lines) + "\n"


def markdown() -> str:
    """Return the table for docs/settings.md."""
    lines = ["| setting | value | default | variable | reload | meaning |", "|---|---|---|---|---|---|"]
    for setting in SETTINGS:
        cells = (
            f"`{setting.key}`",
            setting.allowed(),
            f"`{show(setting.default)}`",
            f"`{setting.variable}`",
            "yes" if setting.reload else "no",
            setting.help,
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _roff(text: str) -> str:
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")
    return re.sub(r"^([.'])", r"\\&\1", escaped, flags=re.MULTILINE)


def man() -> str:
    """Return ccorchd.toml(5) in roff (man-pages(7), groff_man(7))."""
    lines = [
        '.TH CCORCHD.TOML 5 "" ccorch "ccorch manual"',
        ".SH NAME",
        "ccorchd.toml \\- settings of the daemon ccorchd",
        ".SH SYNOPSIS",
        ".I \\(ti/.config/ccorch/ccorchd.toml",
        ".br",
        ".I \\(ti/.config/ccorch/ccorchd.toml.d/*.toml",
        ".SH DESCRIPTION",
        "The files are TOML. Later ones win: the defaults, the file ccorchd.toml, the files of ccorchd.toml.d in the",
        "order of their names, and last the environment of the daemon, where the setting",
        ".I section.name",
        "is the variable",
        ".IR CCORCH_SECTION_NAME .",
        "Lists in a variable are separated by spaces or commas.",
        ".PP",
        "An unknown setting or a value that does not fit is an error: the daemon does not start, and a reload changes",
        "nothing.",
        ".PP",
        ".B ccorchctl config",
        "shows each setting with its value and the file or variable it comes from.",
        "Settings about limits count for instances started later; those that run keep theirs.",
        ".PP",
        "Sizes are in bytes, or a number followed by K, M, G or T to the base 1024. Times are in seconds.",
    ]
    for section in SECTIONS:
        lines += [f".SH [{section}]", _roff(SECTION_HELP[section])]
        for setting in SETTINGS:
            if setting.section != section:
                continue
            lines += [
                ".TP",
                f'.BR {setting.name} " = {_roff(show(setting.default))}"',
                _roff(setting.help),
                ".br",
                f"Value: {_roff(setting.allowed())}. Variable: {setting.variable}.",
            ]
            if not setting.reload:
                lines.append("A change takes a restart of the daemon; instances go on.")
    lines += [
        ".SH EXAMPLE",
        ".EX",
        "[instances]",
        "max = 6",
        "memory_max = \\(dq4G\\(dq",
        "",
        "[claude]",
        "permission_mode = \\(dqacceptEdits\\(dq",
        ".EE",
        ".SH SEE ALSO",
        ".BR ccorchctl (1),",
        ".BR systemd.resource\\-control (5)",
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Print one rendering of the table; return the exit status."""
    renderings: dict[str, Callable[[], str]] = {"man": man, "markdown": markdown, "toml": default_text}
    if len(arguments) != 1 or arguments[0] not in renderings:
        print("usage: python3 -m ccorchd.config man|markdown|toml", file=sys.stderr)
        return 2
    sys.stdout.write(renderings[arguments[0]]())
    return 0

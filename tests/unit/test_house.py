# SPDX-License-Identifier: LGPL-2.1-or-later
"""Rules of the house that a machine can check: import directions, owners of libraries, headers, names, packages."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("ccorchd", "ccorchctl", "web")
FOLDERS = (*PROGRAMS, "tests", "packaging", "units", ".ci", "man")
LINE_LENGTH = 120

LAYERS: tuple[tuple[str, ...], ...] = (
    ("contract",),
    ("errors",),
    ("model",),
    ("events",),
    ("background", "records"),
    ("settings",),
    ("settings_text",),
    ("config", "projectfile"),
    ("limits",),
    ("agents", "gitwork", "host", "storage"),
    ("history",),
    ("instances", "tasks", "worktrees", "integrations"),
    ("projects",),
    ("creation",),
    ("orchestrator",),
    ("doctor",),
    ("bus",),
    ("daemon",),
    ("__main__",),
)
"""Modules and folders of ccorchd, lowest first. A module imports only from lines above its own, or its own folder."""

OWNERS: dict[str, tuple[str, ...]] = {
    "aiohttp": ("web/", "ccorchd/integrations/"),
    "argcomplete": ("ccorchctl/parser.py",),
    "cryptography": ("ccorchd/host/secrets.py",),
    "dbus_next": ("ccorchd/host/dbus.py", "ccorchctl/client.py"),
    "git": ("ccorchd/gitwork/",),
    "gitdb": ("ccorchd/gitwork/",),
    "keyring": ("ccorchd/host/secrets.py",),
    "libtmux": ("ccorchd/host/tmux.py",),
    "peewee": ("ccorchd/storage/",),
    "playhouse": ("ccorchd/storage/",),
    "psutil": ("ccorchd/host/usage.py",),
    "pystemd": ("ccorchd/host/manager.py",),
    "sdnotify": ("ccorchd/daemon.py",),
}
"""Who may import a library: files, or folders with a slash at the end. dbus-next has one at each end of the bus."""

CLIENTS_MAY_IMPORT = {
    "ccorchctl": ("ccorchd.contract", "ccorchctl"),
    "web": ("ccorchd.contract", "ccorchctl.client", "web"),
}
STANDALONE = ("ccorchd/agents/hook.py",)
"""Run as scripts with `python3 -I -S`: nothing but the standard library is there."""

VAGUE_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}
HEADED_SUFFIXES = {".py", ".sh", ".service", ".slice", ".socket", ".target", ".timer", ".js", ".css"}


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and absolute dotted name of each import; ``from a import b`` gives ``a.b``."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                start = package[: len(package) - node.level + 1]
                base = ".".join([*start, *([base] if base else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def layer(module: str) -> int | None:
    return next((index for index, names in enumerate(LAYERS) if module in names), None)


def inside(name: str, allowed: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in allowed)


def complain(findings: list[str]) -> None:
    if findings:
        pytest.fail("\n" + "\n".join(findings), pytrace=False)


def test_daemon_imports_point_down() -> None:
    findings = []
    for path in python_files("ccorchd"):
        own = path.relative_to(ROOT / "ccorchd").parts[0].removesuffix(".py")
        if own == "__init__":
            findings += [f"{relative(path)}:{line}: the package itself imports nothing" for line, _ in imports(path)]
            continue
        height = layer(own)
        if height is None:
            findings.append(f"{relative(path)}: give {own!r} a place in LAYERS")
            continue
        for line, name in imports(path):
            parts = name.split(".")
            if parts[0] in ("ccorchctl", "web", "ccorchweb"):
                findings.append(f"{relative(path)}:{line}: the daemon imports its client {name}")
            if parts[0] != "ccorchd" or len(parts) < 2 or parts[1] in (own, "__version__"):
                continue
            other = layer(parts[1])
            if other is None or other >= height:
                findings.append(f"{relative(path)}:{line}: {own} may not import {name}")
    complain(findings)


@pytest.mark.parametrize("program", sorted(CLIENTS_MAY_IMPORT))
def test_clients_know_only_the_contract(program: str) -> None:
    findings = []
    for path in python_files(program):
        for line, name in imports(path):
            ours = name.split(".")[0] in ("ccorchd", "ccorchctl", "web", "ccorchweb")
            if ours and name != "ccorchd.__version__" and not inside(name, CLIENTS_MAY_IMPORT[program]):
                findings.append(f"{relative(path)}:{line}: {program} may not import {name}")
    complain(findings)


def test_each_library_has_one_owner() -> None:
    findings = []
    for path in python_files(*PROGRAMS):
        where = relative(path)
        for line, name in imports(path):
            library = name.split(".")[0]
            if library in sys.stdlib_module_names or library in ("ccorchd", "ccorchctl", "web", "ccorchweb"):
                continue
            owners = OWNERS.get(library)
            if owners is None:
                findings.append(f"{where}:{line}: {library} is not in OWNERS")
            elif not any(where.startswith(owner) if owner.endswith("/") else where == owner for owner in owners):
                findings.append(f"{where}:{line}: {library} belongs to {', '.join(owners)}")
    complain(findings)


def test_contract_and_standalone_scripts_need_only_the_standard_library() -> None:
    findings = []
    for where in ("ccorchd/contract.py", *STANDALONE):
        path = ROOT / where
        if not path.exists():
            findings.append(f"{where}: missing")
            continue
        for line, name in imports(path):
            if name.split(".")[0] not in sys.stdlib_module_names:
                findings.append(f"{where}:{line}: imports {name}")
    complain(findings)


def test_build_and_test_machinery_needs_only_the_standard_library() -> None:
    """packaging/ runs before anything is installed; it may import its own modules and contract."""
    own = (
        {"packaging"}
        | {path.stem for path in python_files("packaging")}
        | {path.name for path in (ROOT / "packaging").iterdir()}
    )
    findings = []
    for path in python_files("packaging"):
        for line, name in imports(path):
            if name.split(".")[0] not in (sys.stdlib_module_names | own) and not inside(name, ("ccorchd.contract",)):
                findings.append(f"{relative(path)}:{line}: imports {name}")
    complain(findings)


def sources() -> list[Path]:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    files += [ROOT / "Makefile", ROOT / "pyproject.toml"]
    return sorted(path for path in files if "__pycache__" not in path.parts)


def is_source(path: Path) -> bool:
    if path.suffix in HEADED_SUFFIXES or path.name in ("Makefile", "pyproject.toml"):
        return True
    with path.open("rb") as stream:
        return stream.read(2) == b"#!"


def test_each_source_file_names_its_licence() -> None:
    findings = []
    for path in filter(is_source, sources()):
        top = path.read_text(encoding="utf-8").splitlines()[:3]
        if not any("SPDX-License-Identifier: LGPL-2.1-or-later" in line for line in top):
            findings.append(f"{relative(path)}:1: no SPDX header")
    complain(findings)


def test_lines_are_short_and_clean() -> None:
    findings = []
    for path in filter(is_source, sources()):
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            if len(line) > LINE_LENGTH and "://" not in line:
                findings.append(f"{relative(path)}:{number}: {len(line)} characters, {LINE_LENGTH} is the limit")
            if line != line.rstrip():
                findings.append(f"{relative(path)}:{number}: white space at the end")
    complain(findings)


def test_modules_say_what_they_are_about() -> None:
    vague = [relative(path) for path in python_files(*PROGRAMS, "packaging") if path.stem in VAGUE_NAMES]
    complain([f"{where}: name the thing, not that it helps" for where in vague])


def test_every_module_has_a_docstring() -> None:
    findings = []
    for path in python_files(*PROGRAMS, "packaging"):
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))):
            findings.append(f"{relative(path)}:1: no docstring")
    complain(findings)


def test_each_package_is_installed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT).as_posix() for path in python_files(*PROGRAMS)}
    packages = {re.sub(r"^web\b", "ccorchweb", folder).replace("/", ".") for folder in folders}
    assert packages == set(settings["packages"])

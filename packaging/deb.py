# SPDX-License-Identifier: LGPL-2.1-or-later
"""Build the Debian package into build/: ``python3 packaging/deb.py``. Prints the path of the package.

The same tree on the same distribution is built once: the result is kept in .cache/deb under a digest of both.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "test"))

import apt

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
CACHE = ROOT / ".cache" / "deb"
PARTS = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "ccorchctl",
    "ccorchd",
    "docs",
    "man",
    "packaging/deb.py",
    "packaging/debian",
    "packaging/manuals.py",
    "pyproject.toml",
    "units",
    "web",
)
"""What the package is made of."""

NOT_POSSIBLE = 77


class BuildError(Exception):
    """One sentence for the person who asked for the package."""


def version() -> str:
    """Return the version, which ccorchd and the changelog have to agree on."""
    tree = ast.parse((ROOT / "ccorchd/__init__.py").read_text(encoding="utf-8"))
    found = [
        node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id == "__version__"
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ]
    if not found:
        raise BuildError("ccorchd/__init__.py has no __version__.")
    newest, _ = newest_changes()
    if newest != found[0]:
        raise BuildError(f"CHANGELOG.md begins with {newest}, ccorchd says {found[0]}.")
    return newest


def newest_changes() -> tuple[str, list[str]]:
    """Return version and points of the uppermost section of CHANGELOG.md."""
    _, heading, rest = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").partition("\n## ")
    if not heading:
        raise BuildError("CHANGELOG.md has no section.")
    section = rest.partition("\n## ")[0]
    points = re.findall(r"^- (.*(?:\n  .*)*)", section, re.MULTILINE)
    return section.split()[0], [" ".join(point.split()) for point in points]


def _files() -> Iterator[Path]:
    for part in PARTS:
        path = ROOT / part
        files = [path] if path.is_file() else sorted(path.rglob("*"))
        yield from (file for file in files if file.is_file() and "__pycache__" not in file.parts)


def digest() -> str:
    """Return a digest of all that the package follows from."""
    summed = hashlib.sha256()
    for line in Path("/etc/os-release").read_text(encoding="utf-8").splitlines():
        if line.startswith(("ID=", "VERSION_ID=")):
            summed.update(line.encode())
    for file in _files():
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        summed.update(f"{file.relative_to(ROOT)} {file.stat().st_mode & 0o111} {content}\n".encode())
    return summed.hexdigest()[:20]


def changelog(number: str, points: list[str]) -> str:
    """Return debian/changelog with one entry; its time is the last commit's, so that a build can be repeated."""
    command = ["git", "-c", f"safe.directory={ROOT}", "log", "-1", "--format=%ct"]
    asked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    time = int(os.environ.get("SOURCE_DATE_EPOCH") or asked.stdout.strip() or 0)
    lines = "\n".join(
        textwrap.fill(point, 78, initial_indent="  * ", subsequent_indent="    ", break_long_words=False)
        for point in points or ["See CHANGELOG.md."]
    )
    maintainer = "ccorch maintainers <maintainers@ccorch.invalid>"
    return f"ccorch ({number}) unstable; urgency=medium\n\n{lines}\n\n -- {maintainer}  {formatdate(time)}\n"


def build(folder: Path, number: str) -> Path:
    """Build in *folder* and return the package. Raise BuildError with the last words of the build."""
    shutil.rmtree(folder, ignore_errors=True)
    tree = folder / f"ccorch-{number}"
    for file in _files():
        target = tree / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    shutil.move(tree / "packaging/debian", tree / "debian")
    (tree / "debian/changelog").write_text(changelog(number, newest_changes()[1]), encoding="utf-8")
    # The distribution's Python builds it, whichever comes first on PATH.
    environment = {name: os.environ[name] for name in ("HOME", "TMPDIR") if name in os.environ}
    environment |= {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "DEB_BUILD_OPTIONS": "nocheck"}
    log = BUILD / "deb.log"
    with log.open("wb") as stream:
        command = ["dpkg-buildpackage", "-us", "-uc", "-b"]
        done = subprocess.run(command, cwd=tree, env=environment, stdout=stream, stderr=stream, check=False)
    if done.returncode:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:])
        raise BuildError(f"{tail}\nThe package does not build; all of it is in {log.relative_to(ROOT)}.")
    return next(folder.glob("ccorch_*.deb"))


def main() -> int:
    if not apt.available():
        print("A Debian package can be built on Debian and its derivatives only.")
        return NOT_POSSIBLE
    lacking = apt.missing(apt.BUILD)
    reason = apt.install(lacking) if lacking else ""
    if reason:
        print(reason, file=sys.stderr)
        return 1
    BUILD.mkdir(exist_ok=True)
    try:
        number = version()
        kept = CACHE / digest()
        if not list(kept.glob("ccorch_*.deb")):
            package = build(BUILD / "deb", number)
            # Only the newest is worth its space.
            shutil.rmtree(CACHE, ignore_errors=True)
            kept.mkdir(parents=True)
            shutil.copy(package, kept)
            shutil.rmtree(BUILD / "deb")
        package = next(kept.glob("ccorch_*.deb"))
        for old in BUILD.glob("ccorch_*.deb"):
            old.unlink()
        print(shutil.copy(package, BUILD / package.name))
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fetch the version of Claude Code that the tests are pinned to, once, and print the path of its native binary.

    python3 tests/claude/fetch.py [CACHE]

CACHE is .cache/claude of the checkout; each version has a folder of its own in it, and CACHE/bin/claude leads to the
pinned one by a relative link, so that the folder can be bound to another place. It needs npm, and 250 MB the first
time.
Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

VERSION = "2.1.197"
PACKAGE = "@anthropic-ai/claude-code"
CACHE = Path(__file__).resolve().parents[2] / ".cache/claude"
SYSTEM_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
TIMEOUT = 900.0


class FetchError(Exception):
    """What went wrong, in one sentence."""


def binary(cache: Path = CACHE) -> Path | None:
    """Return the native binary of the pinned version if *cache* has it."""
    # There is one package for each platform, of which npm installs the one that fits.
    found = sorted((cache / VERSION / "node_modules").glob(f"{PACKAGE}-*/claude"))
    return found[0] if found else None


def version_of(program: Path) -> str:
    """Return what ``claude --version`` says, in an environment that holds nobody's settings."""
    with tempfile.TemporaryDirectory(prefix="claude-version-") as home:
        environment = {"PATH": os.defpath, "HOME": home, "DISABLE_AUTOUPDATER": "1"}
        done = subprocess.run(
            [str(program), "--version"], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
    return done.stdout.split()[0] if done.returncode == 0 and done.stdout.split() else ""


def fetch(cache: Path = CACHE) -> Path:
    """Return the native binary, installed into *cache* if need be; raise :class:`FetchError`."""
    cache.mkdir(parents=True, exist_ok=True)
    with _lock(cache / "lock"):
        program = binary(cache)
        if program is None:
            _install(cache)
            program = binary(cache)
        if program is None:
            raise FetchError(f"{PACKAGE} {VERSION} has no native binary for this platform")
        if (said := version_of(program)) != VERSION:
            raise FetchError(
                f"{program} says it is version {said or 'unknown'}, not {VERSION}: remove {cache / VERSION}"
            )
        _link(cache, program)
        return program


def _environment() -> dict[str, str]:
    """Return ours, in which npm trusts what the system trusts; its own list lacks a company's own authority."""
    environment = dict(os.environ)
    if SYSTEM_AUTHORITIES.is_file():
        environment.setdefault("NODE_EXTRA_CA_CERTS", str(SYSTEM_AUTHORITIES))
    return environment


def _install(cache: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise FetchError("npm is not installed: apt install npm")
    # Under another name until it is whole: an interrupted installation must not look like one.
    with tempfile.TemporaryDirectory(dir=cache, prefix=f".{VERSION}-") as folder:
        command = [
            npm,
            "install",
            "--prefix",
            folder,
            "--no-audit",
            "--no-fund",
            "--ignore-scripts",
            "--loglevel=error",
        ]
        try:
            done = subprocess.run(
                [*command, f"{PACKAGE}@{VERSION}"],
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr,
                env=_environment(),
                timeout=TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise FetchError(f"npm did not end within {TIMEOUT:g} s") from None
        if done.returncode:
            raise FetchError(f"npm ended with status {done.returncode}")
        os.chmod(folder, 0o755)
        shutil.rmtree(cache / VERSION, ignore_errors=True)
        os.rename(folder, cache / VERSION)
        os.mkdir(folder)  # which the temporary directory expects to find


def _link(cache: Path, program: Path) -> None:
    link = cache / "bin/claude"
    link.parent.mkdir(exist_ok=True)
    target = os.path.relpath(program, link.parent)
    if link.is_symlink() and os.readlink(link) == target:
        return
    with contextlib.suppress(FileNotFoundError):
        link.unlink()
    link.symlink_to(target)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> int:
    cache = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else CACHE
    try:
        print(fetch(cache))
    except (FetchError, OSError) as error:
        print(f"fetch.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

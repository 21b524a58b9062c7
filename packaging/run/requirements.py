# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a trial run needs: found out before anything is changed, listed, and installed in one go."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from run.problem import Problem

RUNTIME = {
    "git": "git",
    "tmux": "tmux",
    "python3-aiohttp": "aiohttp",
    "python3-cryptography": "cryptography",
    "python3-dbus-next": "dbus_next",
    "python3-git": "git",
    "python3-keyring": "keyring",
    "python3-libtmux": "libtmux",
    "python3-peewee": "peewee",
    "python3-psutil": "psutil",
    "python3-pystemd": "pystemd",
    "python3-sdnotify": "sdnotify",
}
"""Debian packages with the program, or (``python3-*``) the module, that shows that they are there."""

SESSION = ("dbus-user-session", "libpam-systemd")
MACHINE = ("systemd", "systemd-sysv", "systemd-container", *SESSION)
VIRTUAL = ("mmdebstrap", "e2fsprogs", "qemu-system-x86", "qemu-utils")

_SPACE = 500 << 20


def python() -> str:
    """Return the Python that has the libraries: the one that runs this, or the distribution's."""
    own = sys.executable
    if own != "/usr/bin/python3" and not _missing_modules(own):
        return own
    return "/usr/bin/python3"


def _missing_modules(interpreter: str) -> list[str]:
    modules = [module for package, module in RUNTIME.items() if package.startswith("python3-")]
    script = "import importlib.util as u, sys; print(*[m for m in sys.argv[1:] if not u.find_spec(m)])"
    try:
        done = subprocess.run([interpreter, "-I", "-c", script, *modules], capture_output=True, text=True, check=False)
    except OSError:
        return modules
    return done.stdout.split() if done.returncode == 0 else modules


def missing_runtime(interpreter: str) -> list[str]:
    """Return the packages whose program or module cannot be found."""
    modules = _missing_modules(interpreter)
    lacking = []
    for package, what in RUNTIME.items():
        if package.startswith("python3-"):
            if what in modules:
                lacking.append(package)
        elif shutil.which(what) is None:
            lacking.append(package)
    return lacking


def missing_packages(packages: Iterable[str]) -> list[str]:
    """Return those Debian packages that dpkg does not know as installed; none where there is no dpkg."""
    if shutil.which("dpkg-query") is None:
        return []
    wanted = list(packages)
    query = ["dpkg-query", "--show", "--showformat=${db:Status-Abbrev} ${Package}\\n", *wanted]
    done = subprocess.run(query, capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C.UTF-8"})
    installed = {line.split()[-1] for line in done.stdout.splitlines() if line.startswith("ii")}
    return [package for package in wanted if package not in installed]


def check_python() -> None:
    if sys.version_info < (3, 11):
        version = ".".join(map(str, sys.version_info[:3]))
        raise Problem(f"ccorch needs Python 3.11 or newer, and {sys.executable} is {version}.")


def check_space(folder: Path, needed: int = _SPACE) -> None:
    """Raise Problem if the file system that *folder* is or will be on has fewer than *needed* bytes free."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise Problem(f"{folder} has {free >> 20} MB free, and {needed >> 20} MB are needed.")


def install(packages: list[str], say: Callable[[str], None]) -> None:
    """Install Debian packages as root, or with sudo after asking once. Raise Problem with the line to type if not."""
    line = f"apt install {' '.join(packages)}"
    say(f"missing packages: {' '.join(packages)}")
    if shutil.which("apt-get") is None:
        raise Problem(
            f"This system has no apt; install what corresponds to these Debian packages: {' '.join(packages)}"
        )
    prefix: list[str] = []
    if os.geteuid() != 0:
        if shutil.which("sudo") is None:
            raise Problem(f"Packages are missing. As root: {line}")
        if sys.stdin.isatty():
            print(f"Install them now with 'sudo {line}'? [Y/n] ", end="", flush=True)
            if sys.stdin.readline().strip().lower() not in ("", "y", "yes"):
                raise Problem(f"Nothing was installed. When you are ready: sudo {line}")
            prefix = ["sudo"]
        elif subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False).returncode == 0:
            prefix = ["sudo", "-n"]
        else:
            raise Problem(f"Packages are missing: sudo {line}")
    say(f"installing them ({line})")
    apt = [*prefix, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-y", "--no-install-recommends"]
    done = _apt([*apt, "install", *packages])
    if done.returncode:  # the lists may be missing or old
        lists = _apt([*apt, "-o", "APT::Update::Error-Mode=any", "update"])
        if lists.returncode:
            raise Problem(f"The package archive cannot be reached: {_reason(lists.stderr)}")
        done = _apt([*apt, "install", *packages])
    if done.returncode:
        raise Problem(f"The packages could not be installed ({_reason(done.stderr)}). Try yourself: {line}")


def _apt(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)


def _reason(text: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith(("E:", "W:"))] or text.splitlines()
    return lines[0].removeprefix("E: ").removeprefix("W: ") if lines else "no reason given"

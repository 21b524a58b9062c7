# SPDX-License-Identifier: LGPL-2.1-or-later
"""The distribution's packages that tiers need: which are missing, and installing them in one go."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence

RUNTIME = (
    "git",
    "python3-aiohttp",
    "python3-cryptography",
    "python3-dbus-next",
    "python3-git",
    "python3-keyring",
    "python3-libtmux",
    "python3-peewee",
    "python3-psutil",
    "python3-pystemd",
    "python3-sdnotify",
    "tmux",
)
TESTING = (
    "groff",
    "python3-coverage",
    "python3-pytest",
    "python3-pytest-asyncio",
    "python3-pytest-timeout",
    "python3-venv",
)
COMPILER = ("gcc", "libsystemd-dev", "pkg-config", "python3-dev")
BUS = ("dbus", "dbus-user-session", "gnome-keyring", "python3-secretstorage", "systemd")
BUILD = (
    "build-essential",
    "debhelper",
    "dh-python",
    "dpkg-dev",
    "fakeroot",
    "pybuild-plugin-pyproject",
    "python3-all",
    "python3-argparse-manpage",
    "python3-setuptools",
)
MACHINE = ("dbus-user-session", "libpam-systemd", "systemd", "systemd-container", "util-linux")
VIRTUAL = ("e2fsprogs", "mmdebstrap", "openssh-client", "qemu-system-x86")

PROVIDED_BY = {"gcc": "gcc", "git": "git", "npm": "npm", "pkg-config": "pkg-config", "tmux": "tmux"}
"""Packages that do as well from elsewhere: it is enough that their program is on PATH."""


def available() -> bool:
    """True on a system with apt and dpkg."""
    return shutil.which("apt-get") is not None and shutil.which("dpkg-query") is not None


def missing(packages: Iterable[str]) -> list[str]:
    """Return those of *packages* that are not installed, sorted; all but known programs where there is no dpkg."""
    wanted = sorted({name for name in packages if not (name in PROVIDED_BY and shutil.which(PROVIDED_BY[name]))})
    if not wanted or not available():
        return wanted
    query = ["dpkg-query", "--show", "--showformat=${db:Status-Abbrev} ${Package}\\n", *wanted]
    answer = subprocess.run(query, capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C.UTF-8"})
    installed = {line.split()[-1] for line in answer.stdout.splitlines() if line.startswith("ii")}
    return [name for name in wanted if name not in installed]


def privilege(*, ask: bool) -> list[str] | None:
    """Return what goes before a command that needs root: nothing, sudo, or None when there is no way.

    With *ask* a person at the terminal may be asked for a password.
    """
    if os.geteuid() == 0:
        return []
    sudo = shutil.which("sudo")
    if sudo is None:
        return None
    if subprocess.run([sudo, "-n", "true"], capture_output=True, check=False).returncode == 0:
        return [sudo, "-n"]
    if ask and os.isatty(0) and subprocess.run([sudo, "-v"], check=False).returncode == 0:
        return [sudo, "-n"]
    return None


def install_line(packages: Sequence[str]) -> str:
    """Return the command that a person types to install *packages*."""
    return "apt install --no-install-recommends " + " ".join(packages)


def install(packages: Sequence[str]) -> str:
    """Install *packages*; return an empty string, or one sentence that says why that was not possible."""
    if not available():
        return "this system has no apt; install the equivalents of: " + " ".join(packages)
    root = privilege(ask=True)
    if root is None:
        return f"installing needs root; run: {install_line(packages)}"
    settings = ["env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8"]
    subprocess.run([*root, *settings, "apt-get", "update", "-qq"], check=False)
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "-o", "Dpkg::Use-Pty=0", *packages]
    ended = subprocess.run([*root, *settings, *command], capture_output=True, text=True, check=False)
    if ended.returncode == 0:
        return ""
    reasons = [line[2:].strip() for line in ended.stderr.splitlines() if line.startswith("E:")] or ["no reason given"]
    return f"apt could not install them ({reasons[0]}); try: {install_line(packages)}"

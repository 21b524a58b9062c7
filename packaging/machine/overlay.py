# SPDX-License-Identifier: LGPL-2.1-or-later
"""Makes the root of a machine from the host's own file system and becomes systemd-nspawn.

It runs in a mount namespace of its own (``unshare --mount``): every mount made here disappears with the last process of
the machine, however it ends, and none is ever seen on the host.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from pathlib import Path

from . import idmap
from .errors import MachineError, NotPossibleHere

KEPT_UNITS = frozenset({"dbus.service", "dbus.socket", "dbus-broker.service", "systemd-logind.service"})
"""Enabled units a machine needs; every other one that the host's administrator enabled is left out of it."""

SEPARATE = ("/usr", "/usr/local", "/var", "/var/lib", "/opt", "/etc", "/srv")
"""Places that may be file systems of their own; an overlay of ``/`` alone would show them empty."""


@dataclasses.dataclass
class Bind:
    """A folder of the host inside the machine.

    ``mapped`` shows what belongs to the owner of *source* as the machine's user's, and gives what that user writes to
    the owner. Without it ids are as they are on the host.
    """

    source: str
    target: str = ""
    read_only: bool = False
    mapped: bool = True

    def __post_init__(self) -> None:
        self.target = self.target or self.source


@dataclasses.dataclass
class Spec:
    """All that the process in the new mount namespace has to know."""

    name: str
    base: str
    user: str
    uid: int
    gid: int
    binds: list[Bind]
    cgroup: str
    network: bool
    lower: str = "/"

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Spec:
        fields = json.loads(text)
        fields["binds"] = [Bind(**bind) for bind in fields["binds"]]
        return cls(**fields)


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise NotPossibleHere(f"The machine's file system cannot be mounted (CAP_SYS_ADMIN is needed): {reason[0]}")


def _mount_points() -> set[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return {line.split(" ")[4] for line in lines}


def mount_root(spec: Spec) -> Path:
    """Mount the overlay of the host's file systems and return its folder."""
    base = Path(spec.base)
    memory, root = base / "memory", base / "root"
    _mount("-t", "tmpfs", "-o", "mode=0755,size=75%", f"ccorch-{spec.name}", str(memory))
    mounted = _mount_points()
    places = ["/", *(place for place in SEPARATE if spec.lower == "/" and place in mounted)]
    for number, place in enumerate(places):
        upper, work = memory / f"upper{number}", memory / f"work{number}"
        upper.mkdir(mode=0o755)
        work.mkdir()
        lower = spec.lower if place == "/" else place
        target = root if place == "/" else root / place.lstrip("/")
        _mount("-t", "overlay", "-o", f"lowerdir={lower},upperdir={upper},workdir={work}", "overlay", str(target))
    return root


def quiet(root: Path) -> None:
    """Leave out of the machine what the host's administrator enabled on the host: servers, timers, mounts."""
    for manager in ("system", "user"):
        for link in (root / "etc/systemd" / manager).glob("*.*/*"):
            if link.parent.suffix in (".wants", ".requires", ".upholds") and link.name not in KEPT_UNITS:
                link.unlink()
    for link in (root / "etc").glob("rc?.d/S*"):
        link.unlink()
    for place in ("etc/fstab", "etc/crypttab"):
        if (root / place).exists():
            (root / place).write_text("")
    # No names, addresses and leases are to be asked for or changed: the machine shares the host's network.
    masked = root / "etc/systemd/system"
    for unit in (
        "systemd-networkd.service",
        "systemd-networkd.socket",
        "systemd-resolved.service",
        "systemd-timesyncd.service",
        "systemd-udevd.service",
        "console-getty.service",
        "getty.target",
        "apt-daily.timer",
        "apt-daily-upgrade.timer",
    ):
        place_ = masked / unit
        place_.unlink(missing_ok=True)
        place_.symlink_to("/dev/null")


def fill(root: Path, spec: Spec) -> None:
    """Give the machine a name, an identity, a journal and a user of its own."""
    for identity in ("etc/machine-id", "var/lib/dbus/machine-id"):
        (root / identity).unlink(missing_ok=True)
    (root / "etc/machine-id").write_text("")
    (root / "etc/hostname").write_text(spec.name + "\n")
    journal = root / "var/log/journal"
    if journal.exists():
        shutil.rmtree(journal)
    # A persistent journal is split by user, so that an ordinary user reads their own; a volatile one is not.
    journal.mkdir(parents=True)
    drop_in = root / "etc/systemd/journald.conf.d"
    drop_in.mkdir(parents=True, exist_ok=True)
    (drop_in / "90-machine.conf").write_text("[Journal]\nStorage=persistent\nSystemMaxUse=128M\nForwardToConsole=no\n")
    linger = root / "var/lib/systemd/linger"
    if linger.exists():
        shutil.rmtree(linger)
    linger.mkdir(parents=True)
    if spec.user:
        _add_user(root, spec)
        (linger / spec.user).touch()


def _add_user(root: Path, spec: Spec) -> None:
    """Make the machine's user, in place of one of that name that the host may have, and with a home of their own."""
    for register in ("passwd", "shadow", "group", "gshadow"):
        file = root / "etc" / register
        if file.exists():
            lines = file.read_text().splitlines(keepends=True)
            file.write_text("".join(line for line in lines if not line.startswith(f"{spec.user}:")))
    home = root / "home" / spec.user
    if not home.parent.exists():
        home.parent.mkdir(mode=0o755)
    home.mkdir(exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"mode=0755,size=50%,uid={spec.uid},gid={spec.gid}", "home", str(home))
    group = ["groupadd", "--root", str(root), "--gid", str(spec.gid), spec.user]
    user = ["useradd", "--root", str(root), "--uid", str(spec.uid), "--gid", str(spec.gid), "--no-create-home"]
    user += ["--home-dir", f"/home/{spec.user}", "--shell", "/bin/bash", spec.user]
    for command in (group, user):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise MachineError(f"The user {spec.user} cannot be made in the machine: {done.stderr.strip()}")
    skeleton = root / "etc/skel"
    if skeleton.is_dir():
        shutil.copytree(skeleton, home, dirs_exist_ok=True, symlinks=True)
        for folder, names, files in os.walk(home):
            for entry in (".", *names, *files):
                os.chown(os.path.join(folder, entry), spec.uid, spec.gid, follow_symlinks=False)


def bind_arguments(spec: Spec, root: Path) -> list[str]:
    """Make the mapped mounts under the machine's folder and return nspawn's arguments that put them in their places."""
    arguments = []
    for number, bind in enumerate(spec.binds):
        source = Path(bind.source)
        status = source.stat()
        if bind.mapped and spec.user and (status.st_uid, status.st_gid) != (spec.uid, spec.gid):
            place = Path(spec.base) / "binds" / str(number)
            if not source.is_dir():
                raise MachineError(f"{source} is no folder: only folders can be bound with their owner mapped.")
            idmap.bind_mapped(source, place, uid=(status.st_uid, spec.uid), gid=(status.st_gid, spec.gid))
            source = place
        # The folders above the target must be open to the machine's user: /root, for one, is not.
        if not bind.target.startswith(("/tmp/", "/run/", "/dev/")):
            _open_parents(root, Path(bind.target))
        option = "--bind-ro" if bind.read_only else "--bind"
        arguments.append(f"{option}={_escape(str(source))}:{_escape(bind.target)}")
    return arguments


def _open_parents(root: Path, target: Path) -> None:
    place = root
    for part in target.parts[1:-1]:
        place = place / part
        if not place.exists():
            place.mkdir(mode=0o755)
        elif place.is_dir() and not place.stat().st_mode & 0o001:
            place.chmod(place.stat().st_mode | 0o011)


def _escape(path: str) -> str:
    return path.replace("\\", "\\\\").replace(":", "\\:")


def launch(spec: Spec) -> None:
    """Build the machine's root and replace this process by systemd-nspawn. Returns only by an exception."""
    root = mount_root(spec)
    if spec.lower == "/":
        quiet(root)
    fill(root, spec)
    arguments = bind_arguments(spec, root)
    if spec.cgroup:
        (Path(spec.cgroup) / "cgroup.procs").write_text(str(os.getpid()))
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
    }
    command = ["systemd-nspawn", "--quiet", f"--directory={root}", f"--machine={spec.name}", "--register=no"]
    command += ["--keep-unit", "--console=pipe", "--link-journal=no", "--resolv-conf=off", "--timezone=off"]
    command += [] if spec.network else ["--private-network"]
    os.execvpe(command[0], [*command, *arguments, "--boot"], environment)

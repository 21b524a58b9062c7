# SPDX-License-Identifier: LGPL-2.1-or-later
"""The disk of the virtual machine: a Debian with what ccorch depends on, made once a month and cached.

mmdebstrap fetches packages from the archives that the host's own apt uses, and needs no root (``--mode=unshare``, with
``uidmap``). ``mkfs.ext4 -d`` writes the disk without a mount. Needs about 1 GB in the cache and two minutes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .errors import MachineError, NotPossibleHere

SUITES = {"bookworm": "Debian 12", "trixie": "Debian 13"}

PACKAGES = (
    "linux-image-cloud-amd64",
    "systemd",
    "systemd-sysv",
    "dbus",
    "dbus-user-session",
    "libpam-systemd",
    "udev",
    "tmux",
    "git",
    "python3",
    "python3-pystemd",
    "python3-sdnotify",
    "python3-dbus-next",
    "python3-aiohttp",
    "python3-aiohttp-jinja2",
    "python3-psutil",
    "python3-libtmux",
    "python3-git",
    "python3-peewee",
    "python3-keyring",
    "python3-cryptography",
    "python3-pytest",
    "python3-pytest-asyncio",
    "procps",
    "ca-certificates",
    "initramfs-tools",
    "zstd",
)

USER = "dev"
USER_ID = 1000
PORTS = 4
"""How many host processes can talk to one machine at a time."""

_FORMAT = 4  # raise it when the way a disk is made changes
_SPACE = 3 << 30

_AGENT_UNIT = """\
[Unit]
Description=Command port %i
DefaultDependencies=no
After=sysinit.target dbus.socket systemd-user-sessions.service
BindsTo=dev-virtio\\x2dports-org.ccorch.agent.%i.device
After=dev-virtio\\x2dports-org.ccorch.agent.%i.device

[Service]
ExecStart=/usr/bin/python3 -I -S /usr/local/lib/ccorch-guest-agent.py /dev/virtio-ports/org.ccorch.agent.%i
Delegate=yes
KillMode=process
OOMScoreAdjust=-900
Restart=always

[Install]
WantedBy=multi-user.target
"""

_INITRAMFS_HOOK = """\
#!/bin/sh
[ "$1" = prereqs ] && exit 0
. /usr/share/initramfs-tools/hook-functions
for module in virtio_pci virtio_blk ext4 crc32c_generic; do force_load $module; done
"""

_SETUP = """\
set -eu
root=$1
mkdir -p $root/etc/initramfs-tools/hooks $root/etc/initramfs-tools/conf.d $root/etc/dpkg/dpkg.cfg.d
echo MODULES=list >$root/etc/initramfs-tools/conf.d/machine
cp "$here/initramfs-hook" $root/etc/initramfs-tools/hooks/machine
chmod 755 $root/etc/initramfs-tools/hooks/machine
"""

_CUSTOMIZE = """\
set -eu
root=$1
cp "$here/agent.py" $root/usr/local/lib/ccorch-guest-agent.py
cp "$here/agent.service" $root/etc/systemd/system/ccorch-guest-agent@.service
for port in $ports; do systemctl --root=$root enable -q ccorch-guest-agent@$port.service; done
chroot $root useradd --create-home --uid $uid --shell /bin/bash $user
mkdir -p $root/var/lib/systemd/linger $root/var/log/journal
touch $root/var/lib/systemd/linger/$user
echo machine >$root/etc/hostname
echo '127.0.0.1 localhost machine' >$root/etc/hosts
echo '/dev/vda / ext4 defaults 0 0' >$root/etc/fstab
echo 'nameserver 10.0.2.3' >$root/etc/resolv.conf
printf '[Match]\\nType=ether\\n[Network]\\nDHCP=yes\\n' >$root/etc/systemd/network/machine.network
systemctl --root=$root enable -q systemd-networkd.service
systemctl --root=$root mask -q getty.target console-getty.service serial-getty@ttyS0.service apt-daily.timer \
  apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
  systemd-timesyncd.service systemd-networkd-wait-online.service systemd-pstore.service logrotate.timer man-db.timer
rm -f $root/var/lib/dbus/machine-id
: >$root/etc/machine-id
"""


@dataclasses.dataclass(frozen=True)
class Image:
    """A finished image. Never write to *disk*: machines work on an overlay of it."""

    disk: Path
    kernel: Path
    initrd: Path


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "ccorch"


def missing_programs() -> list[str]:
    """Return the Debian packages whose programs are missing for making and booting an image."""
    wanted = {"mmdebstrap": "mmdebstrap", "mkfs.ext4": "e2fsprogs", "qemu-img": "qemu-utils"}
    wanted |= {"qemu-system-x86_64": "qemu-system-x86"}
    if os.geteuid() != 0:
        wanted |= {"newuidmap": "uidmap"}
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    return sorted({package for program, package in wanted.items() if shutil.which(program, path=path) is None})


def sources(suite: str, apt: Path = Path("/etc/apt")) -> list[str]:
    """Return the host's own apt lines for *suite*, empty when its apt knows another distribution."""
    wanted = {suite, f"{suite}-updates", f"{suite}-security"}
    lines: list[str] = []
    for file in [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]:
        if not file.is_file():
            continue
        text = file.read_text(errors="replace")
        lines += _deb822(text, wanted) if file.suffix == ".sources" else _one_line(text, wanted)
    # Somebody's extra repository may name its suite "bookworm-updates" too; without the base suite it is no archive.
    return lines if any(line.split()[-2] == suite for line in lines) else []


def _one_line(text: str, wanted: set[str]) -> Iterator[str]:
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if words[:1] == ["deb"]:
            if words[1:2] and words[1].startswith("["):
                while words[1:] and not words[1].endswith("]"):
                    del words[1]
                del words[1]
            if len(words) > 3 and words[2] in wanted and "main" in words[3:] and "debian" in words[1]:
                yield f"deb {words[1]} {words[2]} main"


def _deb822(text: str, wanted: set[str]) -> Iterator[str]:
    for stanza in text.split("\n\n"):
        fields = {}
        for line in stanza.splitlines():
            key, colon, value = line.partition(":")
            if colon and not line.startswith(("#", " ")):
                fields[key.strip().lower()] = value.split()
        if "deb" in fields.get("types", []) and "main" in fields.get("components", []):
            for address in fields.get("uris", []):
                for suite in fields.get("suites", []):
                    if suite in wanted and "debian" in address and fields.get("enabled") != ["no"]:
                        yield f"deb {address} {suite} main"


def _proxy_options() -> list[str]:
    """Return mmdebstrap's options for the proxy the host's apt is set up with."""
    done = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False)
    kept = ("Acquire::http::Proxy ", "Acquire::https::Proxy ", "Acquire::https::CaInfo ", "Acquire::http::Proxy::")
    return [f"--aptopt={line}" for line in done.stdout.splitlines() if line.startswith(kept) and '""' not in line]


def _key(suite: str) -> str:
    guest = Path(__file__).parent / "guest" / "agent.py"
    month = datetime.date.today().strftime("%Y-%m")
    what = [str(_FORMAT), suite, *PACKAGES, guest.read_text(), _AGENT_UNIT, _SETUP, _CUSTOMIZE, _INITRAMFS_HOOK]
    return f"{suite}-{month}-" + hashlib.sha256("\0".join(what).encode()).hexdigest()[:12]


def cached(suite: str = "bookworm") -> Image | None:
    folder = cache_folder() / "images" / _key(suite)
    image = Image(folder / "disk.img", folder / "vmlinuz", folder / "initrd.img")
    return image if image.disk.exists() else None


def make(suite: str = "bookworm", *, say: Callable[[str], None] = lambda text: None) -> Image:
    """Return the image of *suite*, made now if it is not in the cache. Raise NotPossibleHere with what is missing."""
    if suite not in SUITES:
        raise MachineError(f"There is no image of {suite}: choose from {', '.join(SUITES)}.")
    found = cached(suite)
    if found is not None:
        return found
    missing = missing_programs()
    if missing:
        raise NotPossibleHere(f"A virtual machine needs packages that are missing: apt install {' '.join(missing)}")
    images = cache_folder() / "images"
    images.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(images).free < _SPACE:
        raise NotPossibleHere(f"A virtual machine's disk needs {_SPACE >> 30} GiB free at {images}.")
    with (images / f"{suite}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs at once: the second takes what the first has made
        found = cached(suite)
        if found is None:
            _remove_old(images)
            say(f"making a {SUITES[suite]} disk for the virtual machine (once a month: about 300 MB and two minutes)")
            _build(suite, images / _key(suite))
            found = cached(suite)
    assert found is not None
    return found


def _remove_old(images: Path) -> None:
    for folder in images.iterdir():
        if folder.is_dir() and time.time() - folder.stat().st_mtime > 40 * 86400:
            shutil.rmtree(folder, ignore_errors=True)


def _build(suite: str, target: Path) -> None:
    environment = {key: os.environ[key] for key in os.environ if key.lower().endswith("_proxy") or key == "TMPDIR"}
    environment |= {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": str(Path.home())}
    environment |= {"user": USER, "uid": str(USER_ID), "ports": " ".join(map(str, range(PORTS)))}
    with tempfile.TemporaryDirectory(prefix="making-", dir=target.parent) as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)  # with --mode=unshare its hooks run as another user
        environment["here"] = str(folder)
        shutil.copy(Path(__file__).parent / "guest" / "agent.py", folder / "agent.py")
        (folder / "agent.service").write_text(_AGENT_UNIT)
        (folder / "initramfs-hook").write_text(_INITRAMFS_HOOK)
        for name, text in (("setup", _SETUP), ("customize", _CUSTOMIZE)):
            (folder / name).write_text("#!/bin/sh\n" + text)
            (folder / name).chmod(0o755)
        mode = "root" if os.geteuid() == 0 else "unshare"
        command = ["mmdebstrap", "--quiet", f"--mode={mode}", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
        command += ['--aptopt=Acquire::Languages "none"', "--dpkgopt=path-exclude=/usr/share/doc/*"]
        command += ["--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*"]
        command += [*_proxy_options(), f"--essential-hook={folder}/setup", f"--customize-hook={folder}/customize"]
        archive = folder / "root.tar"
        _execute([*command, suite, str(archive), *sources(suite)], environment, "mmdebstrap")
        unpack = textwrap.dedent(
            """
            set -eu
            trap 'rm -rf "$1/root"' EXIT
            mkdir "$1/root"
            # Without privilege no device node can be made; devtmpfs has them all anyway.
            tar --extract --exclude='./dev/*' --numeric-owner --directory="$1/root" --file="$1/root.tar"
            cp "$1"/root/boot/vmlinuz-* "$1/vmlinuz"
            cp "$1"/root/boot/initrd.img-* "$1/initrd.img"
            rm -rf "$1"/root/boot/* "$1"/root/var/cache/apt/archives/*.deb
            truncate --size=8G "$1/disk.img"
            mkfs.ext4 -q -F -L machine -d "$1/root" "$1/disk.img"
            rm -f "$1/root.tar"
            """
        )
        helper = ["mmdebstrap", "--unshare-helper"] if mode == "unshare" else []
        if mode == "unshare":
            folder.chmod(0o777)  # the namespace's root writes here, and is nobody's equal outside
        _execute([*helper, "sh", "-c", unpack, "sh", str(folder)], environment, "mkfs.ext4")
        making = target.with_name(target.name + ".new")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir()
        for name in ("vmlinuz", "initrd.img", "disk.img"):
            _take(folder / name, making / name)
        making.rename(target)


def _take(source: Path, target: Path) -> None:
    """Move a file, or copy it where the namespace's root owns it, holes and all."""
    if source.stat().st_uid == os.geteuid():
        source.rename(target)
        target.chmod(0o644)
    else:
        subprocess.run(["cp", "--sparse=always", str(source), str(target)], check=True)
        with contextlib.suppress(OSError):
            source.unlink()


def _execute(command: list[str], environment: dict[str, str], what: str) -> None:
    done = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        # mmdebstrap closes with an E: of its own that only says that something failed.
        errors = [line for line in lines if not line.startswith(("I:", "E: unshared command failed"))]
        reason = errors[-1] if errors else "no reason given"
        raise MachineError(f"{what} could not make the virtual machine's disk: {reason}")

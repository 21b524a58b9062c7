# SPDX-License-Identifier: LGPL-2.1-or-later
"""A virtual machine: no privilege needed, every controller on cgroup v2, real reboots and power cuts.

QEMU emulates the processor unless ``CCORCH_KVM=1`` is set and a test boot shows that KVM works: on some hosts
``/dev/kvm`` opens and the guest hangs. Emulated, it boots in about twenty seconds and runs Python ten times slower than
the host. The host talks to a small service inside (guest/agent.py) over virtio ports: no network, no ssh, no keys.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import io
import itertools
import json
import os
import selectors
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import termios
import time
import tty as terminal_modes
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from . import image
from .errors import MachineError, NotPossibleHere
from .inside import command_line

_CHUNK = 24 * 1024


def why_not() -> str:
    """Return one sentence that says what a virtual machine lacks here, or an empty string."""
    if os.uname().machine != "x86_64":
        return f"The virtual machine is made for x86_64, and this is {os.uname().machine}."
    missing = image.missing_programs()
    if missing:
        return f"A virtual machine needs packages that are missing: apt install {' '.join(missing)}"
    memory = {line.split(":")[0]: int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines()}
    if memory["MemAvailable"] < 2500 * 1024:
        return f"A virtual machine needs 2.5 GB of free memory, and there are {memory['MemAvailable'] // 1024} MB."
    return ""


def _started(pid: int) -> int:
    """Return the start time of a process in clock ticks, 0 when there is none or only its zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return 0 if fields[0] in "ZX" else int(fields[19])
    except (OSError, IndexError, ValueError):
        return 0


class _Line:
    """One connection to one of the guest's command ports."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise
        self.socket.setblocking(False)
        self._received = b""
        self._waiting = b"\n"  # ends what an earlier process may have left half-written

    def send(self, **message: object) -> None:
        self._waiting += json.dumps(message).encode() + b"\n"

    @property
    def backlog(self) -> int:
        return len(self._waiting)

    def exchange(self, timeout: float, extra: int | None = None) -> tuple[list[dict[str, Any]], bool]:
        """Write and read what can be now, waiting up to *timeout* seconds; also tell whether *extra* can be read.

        Raise MachineError when the machine has gone.
        """
        with selectors.DefaultSelector() as waiting:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._waiting else 0)
            waiting.register(self.socket, events)
            if extra is not None:
                waiting.register(extra, selectors.EVENT_READ)
            ready = {key.fileobj: mask for key, mask in waiting.select(max(0.0, timeout))}
        mask = ready.get(self.socket, 0)
        messages = []
        try:
            if mask & selectors.EVENT_WRITE:
                self._waiting = self._waiting[self.socket.send(self._waiting[:65536]) :]
            if mask & selectors.EVENT_READ:
                data = self.socket.recv(1 << 18)
                if not data:
                    raise MachineError("The virtual machine has ended.")
                *complete, self._received = (self._received + data).split(b"\n")
                for line in complete:
                    with contextlib.suppress(ValueError):
                        message = json.loads(line)
                        if isinstance(message, dict):
                            messages.append(message)
        except BlockingIOError:
            pass
        except OSError as error:
            raise MachineError(f"The virtual machine has ended ({error.strerror}).") from error
        return messages, extra in ready

    def close(self) -> None:
        self.socket.close()


class Machine:
    """A booted virtual machine. Make one with :meth:`boot`, find one that runs with :meth:`open`."""

    kind = "vm"
    user = image.USER
    uid = image.USER_ID

    def __init__(self, name: str, *, pid: int = 0, started: int = 0, kvm: bool = False, memory: str = "2G") -> None:
        self.name = name
        self._pid = pid
        self._started = started
        self._kvm = kvm
        self._memory = memory
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(int(time.time() * 1000) % 1_000_000_000)

    @property
    def base(self) -> Path:
        """The machine's folder: its disk, console log and sockets."""
        return image.cache_folder() / "vm" / self.name

    @property
    def alive(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            return False
        return self._pid != 0 and _started(self._pid) == self._started

    @classmethod
    def boot(
        cls,
        name: str,
        *,
        suite: str = "bookworm",
        memory: str = "2G",
        timeout: float = 180,
        say: Callable[[str], None] = lambda text: None,
    ) -> Machine:
        """Boot a machine on a fresh copy of the image and return it when its user manager is up.

        An earlier machine of this name is killed and removed. *memory* is QEMU's ``-m``. Raise NotPossibleHere when the
        host lacks something, MachineError when the boot fails.
        """
        reason = why_not()
        if reason:
            raise NotPossibleHere(reason)
        previous = cls.open(name)
        if previous is not None:
            previous.power_cut()
        made = image.make(suite, say=say)
        machine = cls(name, memory=memory)
        machine._remove()
        machine.base.mkdir(parents=True)
        (machine.base / "image.json").write_text(
            json.dumps({"disk": str(made.disk), "kernel": str(made.kernel), "initrd": str(made.initrd)})
        )
        machine._create_disk(made.disk)
        if os.environ.get("CCORCH_KVM") == "1" and os.access("/dev/kvm", os.R_OK | os.W_OK):
            with contextlib.suppress(MachineError):
                machine._kvm = True
                machine._power_on(30)
                return machine
            machine.power_cut()
            say("KVM is there but does not work here: emulating the processor")
            machine._kvm = False
            machine._create_disk(made.disk)
        try:
            machine._power_on(timeout)
        except BaseException:
            machine.power_cut()
            raise
        return machine

    @classmethod
    def open(cls, name: str) -> Machine | None:
        """Return the running machine of that name, or None."""
        machine = cls(name)
        try:
            fields = json.loads((machine.base / "state.json").read_text())
            machine = cls(name, **fields)
        except (OSError, ValueError, TypeError):
            return None
        return machine if machine.alive else None

    def _create_disk(self, backing: Path) -> None:
        command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(backing)]
        command.append(str(self.base / "disk.qcow2"))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise MachineError(f"The virtual machine's disk cannot be made: {done.stderr.strip()}")

    def _power_on(self, timeout: float) -> None:
        made = json.loads((self.base / "image.json").read_text())
        for leftover in self.base.glob("port*.sock"):
            leftover.unlink()
        append = "root=/dev/vda rw console=ttyS0 quiet mitigations=off psi=1 apparmor=0 systemd.show_status=no panic=1"
        # A busy host makes the guest's processors stall, and a guest that says so at length can hang.
        append += " nowatchdog rcupdate.rcu_cpu_stall_suppress=1"
        command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-M", "q35"]
        command += ["-accel", "kvm"] if self._kvm else ["-accel", "tcg,thread=multi"]
        command += ["-cpu", "host" if self._kvm else "max", "-smp", "2", "-m", self._memory]
        # An emulated processor does not always survive a warm reset: a reboot ends QEMU, and it is started again.
        command += ["-no-reboot"]
        command += ["-kernel", made["kernel"], "-initrd", made["initrd"], "-append", append]
        command += ["-drive", "file=disk.qcow2,if=virtio,format=qcow2,discard=unmap", "-serial", "file:console.log"]
        command += ["-device", "virtio-rng-pci", "-nic", "user,model=virtio-net-pci"]
        command += ["-device", "virtio-serial-pci"]
        for port in range(image.PORTS):
            command += ["-chardev", f"socket,id=port{port},path=port{port}.sock,server=on,wait=off"]
            command += ["-device", f"virtserialport,chardev=port{port},name=org.ccorch.agent.{port}"]
        with (self.base / "qemu.log").open("wb") as log:
            # Relative paths: a socket's may have 107 bytes at most, and a comma would end an option.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.base,
                env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "TMPDIR": str(self.base)},
            )
        self._pid, self._started = self._process.pid, _started(self._process.pid)
        fields = {"pid": self._pid, "started": self._started, "kvm": self._kvm, "memory": self._memory}
        (self.base / "state.json").write_text(json.dumps(fields))
        self._wait_until_up(time.monotonic() + timeout)

    def _wait_until_up(self, deadline: float) -> None:
        """Wait for the guest's service and the user manager."""
        while True:
            if not self.alive:
                log = (self.base / "qemu.log").read_text(errors="replace").strip().splitlines()
                raise MachineError(f"The virtual machine did not start: {log[-1] if log else 'QEMU gave no reason'}")
            if time.monotonic() > deadline:
                raise MachineError(f"The virtual machine is not up in time; its console is {self.base}/console.log.")
            if self._ping(1):
                break
            time.sleep(0.1)
        script = f"systemctl is-system-running --wait; systemctl start user@{self.uid}.service"
        done = self.run(["sh", "-c", script], user="root", timeout=max(5.0, deadline - time.monotonic()))
        if done.returncode:
            raise MachineError(f"The virtual machine's user manager does not start: {done.stderr.strip()}")

    def _ping(self, timeout: float) -> str:
        deadline = time.monotonic() + timeout
        with contextlib.suppress(MachineError, OSError), self._line() as line:
            number = next(self._numbers)
            line.send(id=number, ping=True)
            while time.monotonic() < deadline:
                for message in line.exchange(deadline - time.monotonic())[0]:
                    if message.get("id") == number and "boot" in message:
                        return str(message["boot"])
        return ""

    @contextlib.contextmanager
    def _line(self) -> Iterator[_Line]:
        """Yield a connection to a port that no other process uses, waiting for one when all are taken."""
        here = os.open(self.base, os.O_RDONLY | os.O_CLOEXEC)
        held = None
        try:
            while held is None:
                for port in range(image.PORTS):
                    lock = os.open(self.base / f"port{port}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                    try:
                        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        os.close(lock)
                        continue
                    held = lock
                    break
                else:
                    time.sleep(0.05)
            line = _Line(Path(f"/proc/self/fd/{here}/port{port}.sock"))
            try:
                yield line
            finally:
                line.close()
        finally:
            if held is not None:
                os.close(held)
            os.close(here)

    def _uid_of(self, user: str) -> int:
        if user in ("root", self.user):
            return 0 if user == "root" else self.uid
        done = self.run(["id", "-u", user], user="root")
        if done.returncode:
            raise MachineError(f"The machine {self.name} has no user {user}.")
        return int(done.stdout)

    def _execute(
        self,
        argv: Sequence[str],
        *,
        source: bytes = b"",
        timeout: float | None = None,
        tty: bool = False,
        terminal: bool = False,
        sink: BinaryIO | None = None,
    ) -> tuple[int, bytes, bytes]:
        """Run *argv* as root inside. *terminal* connects this process' own; output goes to *sink* where given."""
        deadline = None if timeout is None else time.monotonic() + timeout
        output = {"out": bytearray(), "err": bytearray()}
        with self._line() as line:
            number = next(self._numbers)
            shown = _terminal_size()
            line.send(id=number, run=list(argv), tty=tty, size=shown)
            position = 0
            ended = terminal
            while True:
                while not ended and line.backlog < 1 << 18:
                    chunk = source[position : position + _CHUNK]
                    position += len(chunk)
                    if chunk:
                        line.send(id=number, **{"in": base64.b64encode(chunk).decode()})
                    else:
                        ended = True
                        line.send(id=number, eof=True)
                wait = 0.5 if deadline is None else min(0.5, deadline - time.monotonic())
                messages, typed = line.exchange(wait, 0 if terminal else None)
                if typed:
                    data = os.read(0, 4096)
                    line.send(id=number, **({"in": base64.b64encode(data).decode()} if data else {"eof": True}))
                if terminal:
                    size = _terminal_size()
                    if size != shown:
                        shown = size
                        line.send(id=number, size=size)
                for message in messages:
                    if message.get("id") != number:
                        continue
                    for stream in ("out", "err"):
                        if stream in message:
                            data = base64.b64decode(message[stream])
                            if sink is not None and stream == "out":
                                sink.write(data)
                                sink.flush()
                            else:
                                output[stream] += data
                    if "exit" in message:
                        return int(message["exit"]), bytes(output["out"]), bytes(output["err"])
                if deadline is not None and time.monotonic() > deadline:
                    line.send(id=number, kill=True)
                    while line.backlog:
                        line.exchange(1)
                    assert timeout is not None
                    raise subprocess.TimeoutExpired(list(argv), timeout, bytes(output["out"]), bytes(output["err"]))

    def run(
        self,
        command: Sequence[str],
        *,
        user: str = "",
        input: str | None = None,
        timeout: float | None = 300,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        tty: bool = False,
        login: bool = False,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run *command* inside and wait for it, as subprocess.run does. *user* is the machine's user unless given.

        After *timeout* seconds the command and all its children are killed and subprocess.TimeoutExpired is raised.
        With *tty* it gets a terminal, and both its outputs come as one.
        """
        user = user or self.user
        argv = command_line(command, user=user, uid=self._uid_of(user), env=env, cwd=cwd, login=login)
        try:
            status, out, err = self._execute(argv, source=(input or "").encode(), timeout=timeout, tty=tty)
        except subprocess.TimeoutExpired as error:
            raise subprocess.TimeoutExpired(list(command), error.timeout, error.output, error.stderr) from None
        done = subprocess.CompletedProcess(
            list(command), status, out.decode(errors="replace"), err.decode(errors="replace")
        )
        if check and status:
            raise MachineError(f"{shlex.join(command)} failed in the machine: {(done.stderr or done.stdout).strip()}")
        return done

    def interactive(self, command: Sequence[str], *, user: str = "", env: Mapping[str, str] | None = None) -> int:
        """Run *command* on this terminal (or, without one, with its output passed on) and return its exit status."""
        user = user or self.user
        argv = command_line(command, user=user, uid=self._uid_of(user), env=env, cwd="", login=False)
        if not (os.isatty(0) and os.isatty(1)):
            status, _, err = self._execute(argv, sink=sys.stdout.buffer)
            sys.stderr.write(err.decode(errors="replace"))
            return status
        before = termios.tcgetattr(0)
        terminal_modes.setraw(0)
        try:
            return self._execute(argv, tty=True, terminal=True, sink=sys.stdout.buffer)[0]
        finally:
            termios.tcsetattr(0, termios.TCSADRAIN, before)

    def put(self, source: Path, target: str, *, user: str = "") -> None:
        """Copy a file or folder of the host to the path *target* inside, owned by *user*."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as archive:
            archive.add(source, arcname=os.path.basename(target.rstrip("/")), filter=_nobodys)
        folder = os.path.dirname(target.rstrip("/")) or "/"
        user = user or self.user
        script = 'mkdir -p "$0" && exec tar -xz --no-same-owner -C "$0"'
        line = ["sh", "-c", script, folder]
        argv = command_line(line, user=user, uid=self._uid_of(user), env=None, cwd="/", login=False)
        status, _, err = self._execute(argv, source=packed.getvalue(), timeout=600)
        if status:
            raise MachineError(f"{source} cannot be copied into the machine: {err.decode(errors='replace').strip()}")

    def get(self, source: str, target: Path) -> None:
        """Copy the file or folder *source* of the machine into the host's folder *target*."""
        folder, name = os.path.split(source.rstrip("/"))
        status, out, err = self._execute(["tar", "-cz", "-C", folder or "/", "--", name], timeout=600)
        if status:
            raise MachineError(f"{source} cannot be copied from the machine: {err.decode(errors='replace').strip()}")
        with tarfile.open(fileobj=io.BytesIO(out), mode="r:gz") as archive:
            archive.extractall(target, filter="data") if hasattr(tarfile, "data_filter") else archive.extractall(target)

    def reboot(self, *, timeout: float = 240) -> None:
        """Reboot the machine in an orderly way and wait until it is up again."""
        deadline = time.monotonic() + timeout
        with contextlib.suppress(MachineError):  # it may be gone before it has answered
            self.run(["systemctl", "--no-block", "reboot"], user="root")
        self._wait(timeout)
        if self.alive:
            raise MachineError(f"The virtual machine does not go down; its console is {self.base}/console.log.")
        self._power_on(max(1.0, deadline - time.monotonic()))

    def power_cut(self) -> None:
        """End the machine as a power failure does: what it had not written to its disk is lost."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            self._wait(10)

    def boot_again(self, *, timeout: float = 240) -> None:
        """Switch the machine on again, on the disk it had, and wait until it is up."""
        if self.alive:
            raise MachineError(f"The machine {self.name} is running.")
        self._power_on(timeout)

    def stop(self, *, force: bool = True, timeout: float = 60) -> None:
        """End the machine (in an orderly way without *force*) and remove it with its disk."""
        if self.alive and not force:
            with contextlib.suppress(MachineError, subprocess.TimeoutExpired):
                self.run(["systemctl", "--no-block", "poweroff"], user="root", timeout=10)
                self._wait(timeout)
        self.power_cut()
        self._remove()

    def _wait(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout)
        while self.alive and time.monotonic() < deadline:
            time.sleep(0.02)

    def _remove(self) -> None:
        if self.base.is_dir():
            shutil.rmtree(self.base)


def _nobodys(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    if "__pycache__" in member.name.split("/"):
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def _terminal_size() -> list[int]:
    try:
        rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(1, termios.TIOCGWINSZ, b"\0" * 8))
        return [rows or 24, columns or 80]
    except OSError:
        return [24, 80]


def running() -> list[str]:
    """Return the names of the virtual machines of this user that run."""
    folder = image.cache_folder() / "vm"
    return [path.name for path in sorted(folder.glob("*")) if Machine.open(path.name) is not None]

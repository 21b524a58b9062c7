# SPDX-License-Identifier: LGPL-2.1-or-later
"""A machine over the host's own file system: the host's programs, a systemd, users and a journal of its own.

What is written inside goes to memory and is gone afterwards, except in folders that are bound in. Boots in one to
three seconds; needs root with CAP_SYS_ADMIN and systemd-nspawn (Debian's ``systemd-container``). Limits are enforced
only where the host keeps its controllers on cgroup v2.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pwd
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from .errors import MachineError, NotPossibleHere
from .inside import ROOT_PATH, command_line
from .overlay import Bind, Spec

BASE = Path("/run")
_PREFIX = "ccorch-machine-"


def why_not() -> str:
    """Return one sentence that says why no such machine can be made here, or an empty string.

    Only a boot proves that one can: this looks at what is cheap to see.
    """
    if os.geteuid() != 0:
        return "A machine over the host's file system needs root."
    wanted = {"systemd-nspawn": "systemd-container", "nsenter": "util-linux", "setpriv": "util-linux"}
    for program, package in wanted.items():
        if shutil.which(program) is None:
            return f"{program} is missing (apt install {package})."
    capabilities = 0
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            capabilities = int(line.split()[1], 16)
    if not capabilities & 1 << 21:
        return "This container lacks CAP_SYS_ADMIN, so nothing can be mounted in it."
    if "overlay" not in Path("/proc/filesystems").read_text().split():
        subprocess.run(["modprobe", "-q", "overlay"], check=False, stderr=subprocess.DEVNULL)
        if "overlay" not in Path("/proc/filesystems").read_text().split():
            return "The kernel has no overlay file system."
    if _cgroup_mount() is None:
        return "No cgroup v2 hierarchy is mounted here."
    return ""


def _cgroup_mount() -> Path | None:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if right.split(" ")[0] == "cgroup2":
            return Path(left.split(" ")[4])
    return None


def _own_cgroup(pid: int | str = "self") -> str:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                return line[3:]
    return ""


def _started(pid: int) -> int:
    """Return the start time of a process in clock ticks, 0 when there is none or only its zombie.

    A process number alone may be somebody else's by now.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return 0 if fields[0] in "ZX" else int(fields[19])
    except (OSError, IndexError, ValueError):
        return 0


def _free_uid() -> int:
    taken = {entry.pw_uid for entry in pwd.getpwall()} | {entry.pw_gid for entry in pwd.getpwall()}
    return next(uid for uid in range(1000, 60000) if uid not in taken)


class Machine:
    """A booted machine. Make one with :meth:`boot`, find one that runs with :meth:`open`."""

    kind = "nspawn"

    def __init__(self, name: str, *, pid: int, started: int, leader: int, cgroup: str, user: str, uid: int) -> None:
        self.name = name
        self.user = user
        self.uid = uid
        self.leader = leader
        self._pid = pid
        self._started = started
        self._cgroup = cgroup
        self._runs = itertools.count()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def base(self) -> Path:
        """The machine's folder on the host: state, console log, and (empty there) the mount points."""
        return BASE / (_PREFIX + self.name)

    @property
    def alive(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            return False
        return _started(self._pid) == self._started

    @classmethod
    def boot(
        cls,
        name: str,
        *,
        binds: Sequence[Bind | str] = (),
        user: str = "dev",
        uid: int = 0,
        network: bool = True,
        lower: str = "/",
        timeout: float = 60,
    ) -> Machine:
        """Boot a machine and return it once its systemd, and the user manager of *user*, are up.

        *binds* are folders of the host; a string is one that appears in the same place, mapped to the machine's user.
        *uid* 0 picks one that the host does not use. *lower* may be another system's root folder. What an earlier
        machine of this name left is removed first. Raise NotPossibleHere when the host cannot, MachineError otherwise.
        """
        reason = why_not()
        if reason:
            raise NotPossibleHere(reason)
        previous = cls.open(name)
        if previous is not None:
            previous.stop(force=True)
        _sweep(name)
        uid = uid or _free_uid()
        base = BASE / (_PREFIX + name)
        all_binds = [Bind(os.path.abspath(bind)) if isinstance(bind, str) else bind for bind in binds]
        for folder in (base, base / "root", base / "memory", base / "binds"):
            folder.mkdir(mode=0o755)
        for number in range(len(all_binds)):
            (base / "binds" / str(number)).mkdir()
        prefix, cgroup = _cgroup_for(name)
        spec = Spec(name, str(base), user, uid, uid, all_binds, str(cgroup or ""), network, lower)
        command = [*prefix, "unshare", "--mount", "--propagation", "private", "--", sys.executable, "-I"]
        command += [str(Path(__file__).parent), "_launch", spec.to_json()]
        with (base / "console.log").open("wb") as console:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True, cwd="/"
            )
        machine = cls(
            name, pid=process.pid, started=_started(process.pid), leader=0, cgroup=str(cgroup or ""), user=user, uid=uid
        )
        machine._process = process
        machine._save()
        try:
            machine._wait_until_up(time.monotonic() + timeout)
        except BaseException:
            machine.stop(force=True)
            raise
        return machine

    @classmethod
    def open(cls, name: str) -> Machine | None:
        """Return the running machine of that name, or None."""
        try:
            fields = json.loads((BASE / (_PREFIX + name) / "state.json").read_text())
            machine = cls(name, **fields)
        except (OSError, ValueError, TypeError):
            return None
        return machine if machine.alive else None

    def _save(self) -> None:
        fields = {"pid": self._pid, "started": self._started, "leader": self.leader, "cgroup": self._cgroup}
        fields |= {"user": self.user, "uid": self.uid}
        temporary = self.base / "state.json.new"
        temporary.write_text(json.dumps(fields))
        temporary.rename(self.base / "state.json")

    def _wait_until_up(self, deadline: float) -> None:
        while not self.leader:
            self._still(deadline)
            self.leader = _find_leader(self._pid)
            time.sleep(0.01)
        if not self._cgroup:
            mount = _cgroup_mount()
            self._cgroup = f"{mount}{_own_cgroup(self.leader)}"
        self._save()
        while True:
            self._still(deadline)
            left = max(1.0, deadline - time.monotonic())
            done = self.run(["systemctl", "is-system-running", "--wait"], user="root", timeout=left)
            if done.stdout.strip() in ("running", "degraded"):
                break
            time.sleep(0.02)
        if self.user:
            done = self.run(["systemctl", "start", f"user@{self.uid}.service"], user="root")
            if done.returncode:
                raise MachineError(f"The user manager of {self.user} does not start: {done.stderr.strip()}")

    def _still(self, deadline: float) -> None:
        if not self.alive:
            log = (self.base / "console.log").read_text(errors="replace").strip().splitlines()
            said = log[-1] if log else "it said nothing"
            kind = NotPossibleHere if said.startswith("not possible: ") else MachineError
            raise kind(f"The machine {self.name} did not boot: {said.removeprefix('not possible: ')}")
        if time.monotonic() > deadline:
            raise MachineError(f"The machine {self.name} is not up in time; its console is {self.base}/console.log.")

    # Entering

    def _uid_of(self, user: str) -> int:
        if user == "root":
            return 0
        if user == self.user:
            return self.uid
        for line in Path(f"/proc/{self.leader}/root/etc/passwd").read_text().splitlines():
            fields = line.split(":")
            if fields[0] == user:
                return int(fields[2])
        raise MachineError(f"The machine {self.name} has no user {user}.")

    def _group(self) -> Path:
        """Return a new cgroup inside the machine's own: what is run must not count as ours, nor survive the machine."""
        payload = Path(self._cgroup)
        with contextlib.suppress(OSError):
            mount = _cgroup_mount()
            own = _own_cgroup(self.leader)
            if mount is not None and own.endswith("/init.scope"):
                payload = Path(f"{mount}{own.removesuffix('/init.scope')}")
        group = payload / f"entered-{os.getpid()}-{next(self._runs)}"
        group.mkdir(exist_ok=True)
        return group

    def argv(
        self,
        command: Sequence[str],
        *,
        user: str = "",
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        tty: bool = False,
        login: bool = False,
        group: Path | None = None,
    ) -> list[str]:
        """Return what to execute on the host to run *command* inside, with *tty* on a terminal of the machine's own.

        *login* goes through PAM, so that logind opens a session (as ssh does) which ends with the command.
        """
        user = user or self.user or "root"
        inner = list(command)
        if tty:
            inner = ["script", "--quiet", "--return", "--command", shlex.join(inner), "/dev/null"]
        inner = command_line(inner, user=user, uid=self._uid_of(user), env=env, cwd=cwd, login=login)
        enter = ["nsenter", f"--target={self.leader}", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--"]
        group = group or self._group()
        return ["sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', str(group), *enter, *inner]

    def run(
        self,
        command: Sequence[str],
        *,
        user: str = "",
        input: str | None = None,
        timeout: float | None = 120,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        tty: bool = False,
        login: bool = False,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run *command* inside and wait for it, as subprocess.run does. *user* is the machine's user unless given.

        After *timeout* seconds the command and all its children are killed and subprocess.TimeoutExpired is raised.
        """
        group = self._group()
        argv = self.argv(command, user=user, env=env, cwd=cwd, tty=tty, login=login, group=group)
        try:
            done = subprocess.run(
                argv,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                check=False,
                env={"PATH": ROOT_PATH},
                input=input or "",
            )
        except subprocess.TimeoutExpired as error:
            _kill_group(group)
            raise subprocess.TimeoutExpired(list(command), error.timeout, error.output, error.stderr) from None
        finally:
            with contextlib.suppress(OSError):  # a daemon that the command left behind keeps its cgroup
                group.rmdir()
        result = subprocess.CompletedProcess(list(command), done.returncode, done.stdout, done.stderr)
        if check and result.returncode:
            raise MachineError(
                f"{shlex.join(command)} failed in the machine: {(result.stderr or result.stdout).strip()}"
            )
        return result

    def interactive(self, command: Sequence[str], *, user: str = "", env: Mapping[str, str] | None = None) -> int:
        """Run *command* on this terminal and return its exit status."""
        tty = os.isatty(0) and os.isatty(1)
        return subprocess.call(self.argv(command, user=user, env=env, tty=tty))

    def stop(self, *, force: bool = False, timeout: float = 15) -> None:
        """Shut the machine down (with *force*: kill it) and remove what it had: processes, cgroups, folder."""
        if self.alive:
            if not force and self.leader:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._pid, signal.SIGTERM)
                self._wait(timeout)
            if self.alive:
                self._kill()
                self._wait(10)
        _sweep(self.name)

    def _kill(self) -> None:
        # The end of the first process of a PID namespace ends all others in it.
        for pid in (self.leader or _find_leader(self._pid), self._pid):
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _wait(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout)
        while self.alive and time.monotonic() < deadline:
            time.sleep(0.02)


def _cgroup_for(name: str) -> tuple[list[str], Path | None]:
    """Return what to put before the command so that the machine has a cgroup of its own, or the cgroup made for it.

    Where PID 1 is systemd the tree is systemd's, and a delegated scope has to be asked for.
    """
    if Path("/run/systemd/system").is_dir():
        command = ["systemd-run", "--quiet", "--scope", f"--unit={_PREFIX}{name}.scope", "--property=Delegate=yes"]
        return [*command, "--collect", "--"], None
    mount = _cgroup_mount()
    assert mount is not None
    group = mount / f"{_PREFIX}{name}"
    group.mkdir(exist_ok=True)
    return [], group


def _descendants(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield int(child)
                yield from _descendants(int(child))


def _find_leader(pid: int) -> int:
    """Return the first process of the machine (PID 1 inside, executing systemd by now), 0 when there is none yet."""
    for child in _descendants(pid):
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{child}/status").read_text()
            numbers = next(line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:"))
            if len(numbers) > 1 and numbers[-1] == "1" and status.startswith("Name:\tsystemd\n"):
                return child
    return 0


def _kill_group(group: Path) -> None:
    with contextlib.suppress(OSError):
        (group / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            if "populated 0" in (group / "cgroup.events").read_text():
                return
        except OSError:
            return
        time.sleep(0.01)


def _remove_cgroup(group: Path) -> None:
    """Remove a tree of cgroups, from the leaves up, once all are empty."""
    if not group.is_dir():
        return
    _kill_group(group)
    for folder, _, _ in os.walk(group, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def _sweep(name: str) -> None:
    """Remove the folder and the cgroups of a machine that is not running. Its mounts died with its namespace."""
    mount = _cgroup_mount()
    if mount is not None and not Path("/run/systemd/system").is_dir():
        _remove_cgroup(mount / f"{_PREFIX}{name}")
    base = BASE / (_PREFIX + name)
    if not base.is_dir():
        return
    for file in ("state.json", "state.json.new", "console.log", ".#root.lck"):
        (base / file).unlink(missing_ok=True)
    # One rmdir each: a folder that is unexpectedly full or mounted stays, and says so.
    binds = base / "binds"
    for folder in [*(binds.iterdir() if binds.is_dir() else ()), binds, base / "root", base / "memory", base]:
        if folder.is_dir():
            try:
                folder.rmdir()
            except OSError as error:
                raise MachineError(f"{folder} of an earlier machine cannot be removed: {error.strerror}.") from error


def running() -> list[str]:
    """Return the names of the machines that run on this host."""
    found = sorted(path.name.removeprefix(_PREFIX) for path in BASE.glob(_PREFIX + "*"))
    return [name for name in found if Machine.open(name) is not None]

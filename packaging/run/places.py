# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where a trial run lives: on this host, in a machine over the host's files, or in a virtual machine.

All three look the same from outside: a user manager, a checkout of ccorch, the repository, and a way to run commands.
"""

from __future__ import annotations

import abc
import json
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from machine import nspawn, vm
from machine.errors import MachineError, NotPossibleHere
from machine.overlay import Bind
from run import repository as repositories
from run import requirements
from run.problem import Problem

CHECKOUT = Path(__file__).resolve().parent.parent.parent
NAME = "run"
STEM = f"ccorch_{NAME}"
MACHINE_NAME = os.environ.get("CCORCH_RUN_MACHINE") or NAME
"""The machine's name. Tests give it one of their own, so that they never meet somebody's trial run."""
PARTS = ("ccorchd", "ccorchctl", "units")
"""What of the checkout a machine without a view of it gets."""


def _folder(variable: str, fallback: str) -> Path:
    base = os.environ.get(variable, "")
    return (Path(base) if base.startswith("/") else Path.home() / fallback) / STEM


def data_folder() -> Path:
    return _folder("XDG_DATA_HOME", ".local/share")


def state_folder() -> Path:
    return _folder("XDG_STATE_HOME", ".local/state")


class Place(abc.ABC):
    """A user manager that can be reached. Paths are those of the place unless a name says ``host``."""

    kind: str
    label: str
    checkout: str = str(CHECKOUT)
    python: str = "/usr/bin/python3"
    slow: float = 1.0
    """How many times longer than on this host things take."""

    def __init__(self, host_repository: Path | None = None) -> None:
        self.host_repository = host_repository
        self.notes: list[str] = []

    @property
    def repository(self) -> str:
        return str(self.host_repository or "")

    @property
    def variables(self) -> dict[str, str]:
        """Return the variables that make ccorchctl and ccorchd this trial's, and Python find them in the checkout."""
        return {"CCORCH_SUFFIX": NAME, "PYTHONPATH": self.checkout, "PYTHONDONTWRITEBYTECODE": "1"}

    @abc.abstractmethod
    def run(
        self, command: Sequence[str], *, text_input: str = "", timeout: float = 60, cwd: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as the user the agents belong to; subprocess.TimeoutExpired when it takes too long."""

    @abc.abstractmethod
    def interactive(self, command: Sequence[str]) -> int:
        """Run a command on this terminal."""

    @abc.abstractmethod
    def start(self, say: Callable[[str], None]) -> None:
        """Bring the place up."""

    def collect(self) -> list[str]:
        """Bring branches from the place into the host's repository; return sentences about what did not come."""
        return []

    @abc.abstractmethod
    def stop(self) -> None:
        """End the place, not the host."""

    def remember(self) -> None:
        """Write down where the run is, for ``make stop``, ``attach`` and ``ctl``."""
        state = state_folder()
        state.mkdir(parents=True, exist_ok=True)
        fields = {"kind": self.kind, "repository": str(self.host_repository or "")}
        (state / "run.json").write_text(json.dumps(fields), encoding="utf-8")


class Here(Place):
    """The user manager of this host."""

    kind = "here"
    label = "in your own user manager"

    def __init__(self, host_repository: Path | None = None) -> None:
        super().__init__(host_repository)
        self.python = requirements.python()
        self._runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"

    def _environment(self) -> dict[str, str]:
        own = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
        bus = os.environ.get("DBUS_SESSION_BUS_ADDRESS") or f"unix:path={self._runtime}/bus"
        return own | {"XDG_RUNTIME_DIR": self._runtime, "DBUS_SESSION_BUS_ADDRESS": bus} | self.variables

    def run(
        self, command: Sequence[str], *, text_input: str = "", timeout: float = 60, cwd: str = ""
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            list(command),
            input=text_input,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            cwd=cwd or None,
            env=self._environment(),
            check=False,
        )

    def interactive(self, command: Sequence[str]) -> int:
        return subprocess.call(list(command), env=self._environment())

    def start(self, say: Callable[[str], None]) -> None:
        done = self.run(["systemctl", "--user", "show", "--property=Version"])
        if done.returncode:
            name = pwd.getpwuid(os.getuid()).pw_name
            raise Problem(
                f"The user manager of {name} cannot be reached ({done.stderr.strip()}). Log in as {name} "
                "directly (ssh, not su or sudo), with the package dbus-user-session installed."
            )
        lingers = Path("/var/lib/systemd/linger", pwd.getpwuid(os.getuid()).pw_name).exists()
        if not lingers:
            self.notes.append(
                "When you log out for the last time all this ends; 'loginctl enable-linger' lets it go on."
            )

    def stop(self) -> None:
        return


class Inside(Place):
    """A machine over the host's own files. The repository, worktrees and state are the host's, at the host's paths."""

    kind = "nspawn"
    label = "in a throwaway machine over this host's files (PID 1 here is not systemd)"

    def __init__(self, host_repository: Path | None = None, machine: nspawn.Machine | None = None) -> None:
        super().__init__(host_repository)
        self._machine = machine

    @property
    def machine(self) -> nspawn.Machine:
        if self._machine is None:
            raise Problem("No trial run is up: make run")
        return self._machine

    @property
    def variables(self) -> dict[str, str]:
        own = {"XDG_DATA_HOME": str(data_folder().parent), "XDG_STATE_HOME": str(state_folder().parent)}
        return super().variables | own | self._claude()

    def _claude(self) -> dict[str, str]:
        program = shutil.which("claude")
        return {"PATH": f"{os.path.dirname(program)}:/usr/local/bin:/usr/bin:/bin"} if program else {}

    def run(
        self, command: Sequence[str], *, text_input: str = "", timeout: float = 60, cwd: str = ""
    ) -> subprocess.CompletedProcess[str]:
        return self.machine.run(command, input=text_input, timeout=timeout, cwd=cwd, env=self.variables)

    def interactive(self, command: Sequence[str]) -> int:
        return self.machine.interactive(command, env=self.variables)

    def start(self, say: Callable[[str], None]) -> None:
        assert self.host_repository is not None
        for folder in (data_folder(), state_folder()):
            folder.mkdir(parents=True, exist_ok=True)
        binds = [Bind(str(data_folder())), Bind(str(state_folder()))]
        if not self.host_repository.is_relative_to(data_folder()):
            binds.append(Bind(str(self.host_repository)))
        if not CHECKOUT.is_relative_to(self.host_repository):
            binds.append(Bind(str(CHECKOUT), read_only=True))
        settings = Path.home() / ".claude"
        if self._claude() and settings.is_dir():
            binds.append(Bind(str(settings), "/home/dev/.claude"))
            program = Path(shutil.which("claude") or "").resolve()
            binds.append(Bind(str(program.parent), read_only=True))
        self._machine = nspawn.Machine.boot(MACHINE_NAME, binds=binds)
        for key, value in (repositories.identity(self.host_repository) or {}).items():
            self.machine.run(["git", "config", "--global", key, value], check=True)

    def stop(self) -> None:
        if self._machine is not None:
            self._machine.stop()


class Virtual(Place):
    """A virtual machine with a clone of the repository; branches travel as git bundles."""

    kind = "vm"
    label = "in a virtual machine (slow where the processor is emulated)"
    checkout = "/home/dev/ccorch"
    slow = 10.0

    def __init__(self, host_repository: Path | None = None, machine: vm.Machine | None = None) -> None:
        super().__init__(host_repository)
        self._machine = machine

    @property
    def switched_off(self) -> bool:
        """True when the machine is not running but its disk, and so what was not fetched, is there."""
        return self._machine is None and (vm.Machine(MACHINE_NAME).base / "disk.qcow2").exists()

    def switch_on(self) -> None:
        self._machine = vm.Machine(MACHINE_NAME)
        self._machine.boot_again()

    @property
    def machine(self) -> vm.Machine:
        if self._machine is None:
            raise Problem("No trial run is up: make run MACHINE=vm")
        return self._machine

    @property
    def repository(self) -> str:
        name = self.host_repository.name if self.host_repository else "repository"
        return f"/home/dev/work/{name}"

    @property
    def variables(self) -> dict[str, str]:
        # Compiled modules are worth a lot where each import is emulated.
        return {key: value for key, value in super().variables.items() if key != "PYTHONDONTWRITEBYTECODE"}

    def run(
        self, command: Sequence[str], *, text_input: str = "", timeout: float = 60, cwd: str = ""
    ) -> subprocess.CompletedProcess[str]:
        return self.machine.run(command, input=text_input, timeout=timeout * self.slow, cwd=cwd, env=self.variables)

    def interactive(self, command: Sequence[str]) -> int:
        return self.machine.interactive(command, env=self.variables)

    def start(self, say: Callable[[str], None]) -> None:
        assert self.host_repository is not None
        self._machine = vm.Machine.boot(MACHINE_NAME, say=say)
        for part in PARTS:
            self.machine.put(CHECKOUT / part, f"{self.checkout}/{part}")
        for key, value in (repositories.identity(self.host_repository) or {}).items():
            self.machine.run(["git", "config", "--global", key, value], check=True)
        with tempfile.TemporaryDirectory(prefix="ccorch-run-") as temporary:
            bundle = Path(temporary) / "repository.bundle"
            what = ("-q", str(bundle), "HEAD", "--branches", "--tags")
            done = repositories.git(self.host_repository, "bundle", "create", *what)
            if done.returncode:
                raise Problem(f"{self.host_repository} cannot be taken into the machine: {done.stderr.strip()}")
            self.machine.put(bundle, "/home/dev/repository.bundle")
        head = repositories.git(self.host_repository, "symbolic-ref", "--short", "HEAD").stdout.strip()
        script = (
            'set -e; mkdir -p "$1"; cd "$1"; git init -q; '
            "git fetch -q --update-head-ok ../../repository.bundle '+refs/heads/*:refs/heads/*'; "
            "git fetch -q ../../repository.bundle '+refs/tags/*:refs/tags/*'; "
            'if [ -n "$2" ]; then git symbolic-ref HEAD "refs/heads/$2"; git reset -q --hard; '
            'else git checkout -q --detach "$3"; fi; rm ../../repository.bundle'
        )
        commit = repositories.git(self.host_repository, "rev-parse", "HEAD").stdout.strip()
        done = self.run(["sh", "-c", script, "sh", self.repository, head, commit])
        if done.returncode:
            raise Problem(f"{self.host_repository} cannot be cloned in the machine: {done.stderr.strip()}")

    def collect(self) -> list[str]:
        if self.host_repository is None:
            return []
        script = "git bundle create -q /tmp/out.bundle --branches='ccorch/*' --glob='refs/ccorch/*'"
        done = self.run(["sh", "-c", script], cwd=self.repository)
        if done.returncode:
            return [] if "empty bundle" in done.stderr else [f"Branches could not be fetched: {done.stderr.strip()}"]
        with tempfile.TemporaryDirectory(prefix="ccorch-run-") as temporary:
            self.machine.get("/tmp/out.bundle", Path(temporary))
            return repositories.fetch_bundle(self.host_repository, Path(temporary) / "out.bundle")

    def stop(self) -> None:
        if self._machine is not None:
            self._machine.stop(force=True)


def has_systemd() -> bool:
    return Path("/run/systemd/system").is_dir()


def choose(wish: str, host_repository: Path) -> Place:
    """Return the place for a run: what MACHINE asks for, or the nearest that can work. Nothing is started yet."""
    if wish not in ("", "host", "nspawn", "vm"):
        raise Problem(f"MACHINE={wish} is none of host, nspawn, vm.")
    if wish == "vm":
        return Virtual(host_repository)
    if wish == "host" or (not wish and has_systemd()):
        if not has_systemd():
            raise Problem("MACHINE=host needs systemd as PID 1, and here it is not.")
        return Here(host_repository)
    if os.geteuid() == 0 and (wish == "nspawn" or not nspawn_why_not()):
        return Inside(host_repository)
    if wish == "nspawn":
        raise Problem("MACHINE=nspawn needs root.")
    place = Virtual(host_repository)
    place.notes.append(nspawn_why_not() or "A machine over this host's files needs root.")
    return place


def nspawn_why_not() -> str:
    """As nspawn.why_not(), but a package that can be installed is no reason."""
    reason = nspawn.why_not()
    return "" if "(apt install " in reason else reason


def current() -> Place | None:
    """Return the place of the run that is up, or was when somebody last looked; None when there is none."""
    try:
        fields = json.loads((state_folder() / "run.json").read_text(encoding="utf-8"))
        kind, repository = str(fields["kind"]), Path(fields["repository"])
    except (OSError, ValueError, KeyError):
        return None
    if kind == "nspawn":
        return Inside(repository, nspawn.Machine.open(MACHINE_NAME))
    if kind == "vm":
        return Virtual(repository, vm.Machine.open(MACHINE_NAME))
    return Here(repository)


def up(place: Place) -> bool:
    """True while the place can run commands."""
    if isinstance(place, Inside | Virtual):
        return place._machine is not None
    return True


__all__ = ["MachineError", "NotPossibleHere", "Place", "choose", "current"]

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Run a folder of tests inside a throwaway machine, as an ordinary user, against the installed package.

``python3 packaging/test/inside.py TIER RESULTS``: boots the machine, installs build/*.deb, runs pytest on the checkout,
which is bound in read-only at /src. JUnit, coverage data and the machine's journal end up in the folder RESULTS.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from environments import MEASURE
from process import NOT_POSSIBLE
from tiers import PYTEST

from machine.errors import MachineError, NotPossibleHere
from machine.nspawn import Machine
from machine.overlay import Bind

ROOT = Path(__file__).resolve().parents[2]
USER = "dev"
PASSED_ON = ("CI", "CCORCH_TEST_ARGS")


def newest_package() -> Path:
    """Return the package that `make deb` built last."""
    packages = sorted((ROOT / "build").glob("ccorch_*.deb"), key=lambda path: path.stat().st_mtime)
    if not packages:
        raise MachineError("There is no package in build/: run `make deb`.")
    return packages[-1]


def install(machine: Machine, package: str) -> None:
    """Install the package and all that measures it, as an administrator would."""
    settings = {"DEBIAN_FRONTEND": "noninteractive"}
    # Container images forbid that services are started by packages; a machine with a systemd has no such policy.
    machine.run(["rm", "-f", "/usr/sbin/policy-rc.d"], user="root", check=True)
    command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", "-o", "Dpkg::Use-Pty=0", package]
    done = machine.run(command, user="root", env=settings, timeout=180)
    print(done.stdout[-3000:], done.stderr[-3000:], flush=True)
    if done.returncode:
        raise MachineError(f"The package {package} does not install.")
    packages = "/usr/lib/python3/dist-packages/ccorch-measure.pth"
    machine.run(["tee", packages], user="root", input=MEASURE, check=True)


def measure(machine: Machine) -> dict[str, str]:
    """Have the daemon measured too, which the user manager starts, and return the variables for pytest itself."""
    variables = {"COVERAGE_PROCESS_START": "/src/pyproject.toml", "COVERAGE_FILE": "/results/coverage/.coverage"}
    text = "".join(f"{name}={value}\n" for name, value in variables.items())
    machine.run(["mkdir", "-p", "/etc/environment.d"], user="root", check=True)
    machine.run(["tee", "/etc/environment.d/90-ccorch-measure.conf"], user="root", input=text, check=True)
    pairs = [f"{name}={value}" for name, value in variables.items()]
    machine.run(["systemctl", "--user", "set-environment", *pairs], check=True)
    return variables


def run_tests(machine: Machine, tier: str, variables: dict[str, str]) -> int:
    """Run pytest and return its exit status; what it prints goes straight through."""
    passed_on = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    variables = variables | passed_on | {"PYTHONDONTWRITEBYTECODE": "1"}
    # -P and an empty pythonpath: what is tested is what is installed, not the checkout.
    command = [
        "/usr/bin/python3",
        "-P",
        "-m",
        "pytest",
        "-c",
        "/src/pyproject.toml",
        "--rootdir=/src",
        "-o",
        "pythonpath=",
    ]
    command += ["-o", "cache_dir=/tmp/.pytest_cache", *PYTEST, "--junit-xml=/results/junit.xml"]
    command.append(f"/src/tests/{tier}")
    command += os.environ.get("CCORCH_TEST_ARGS", "").split()
    argv = machine.argv(command, env=variables)
    return subprocess.call(argv, stdin=subprocess.DEVNULL)


def save_journal(machine: Machine, results: Path) -> None:
    done = machine.run(["journalctl", "--no-pager", "-b", "-o", "short-precise"], user="root", timeout=60)
    (results / "journal.txt").write_text(done.stdout, encoding="utf-8")


def _ended(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main(tier: str, results: Path) -> int:
    """Return pytest's exit status, or NOT_POSSIBLE after a line that says why."""
    signal.signal(signal.SIGTERM, _ended)
    package = newest_package()
    (results / "coverage").mkdir(parents=True, exist_ok=True)
    shutil.copy(package, results / package.name)
    if os.geteuid() == 0:
        # Files bound in belong inside to the machine's user if here to whoever owns the checkout.
        owner = ROOT.stat()
        for path in (results, results / "coverage"):
            os.chown(path, owner.st_uid, owner.st_gid)
    binds = [Bind(str(ROOT), "/src", read_only=True), Bind(str(results), "/results")]
    if tier == "claude":
        binds.append(Bind(str(ROOT / ".cache/claude"), "/opt/claude-test", read_only=True))
    machine = Machine.boot(f"test-{tier}-{os.getpid()}", binds=binds, user=USER)
    try:
        install(machine, f"/results/{package.name}")
        status = run_tests(machine, tier, measure(machine))
        save_journal(machine, results)
        return status
    finally:
        machine.stop()


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1], Path(sys.argv[2]).resolve()))
    except NotPossibleHere as error:
        print(error)
        sys.exit(NOT_POSSIBLE)
    except (MachineError, subprocess.TimeoutExpired) as error:
        print(error)
        sys.exit(1)

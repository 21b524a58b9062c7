# SPDX-License-Identifier: LGPL-2.1-or-later
"""``make bench``: measure launch overhead, start, memory and hook latency, each against a rival in the same run.

As root it boots a throwaway machine and installs the package there; as an ordinary user with a user manager it measures
the checkout right here. It never fails because of a figure: it says ``ok`` or ``over``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "packaging"))

from figures import Row, table
from measure_here import HERE

from machine.errors import MachineError
from machine.nspawn import Machine
from machine.overlay import Bind

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "build" / "bench"


def _host() -> dict[str, object]:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "unknown",
    )
    system = platform.freedesktop_os_release().get("PRETTY_NAME", "unknown")
    return {
        "cpus": os.cpu_count(),
        "model": model,
        "system": system,
        "kernel": platform.release(),
        "load": os.getloadavg(),
    }


def _here(results: Path, arguments: list[str]) -> int:
    """Measure the checkout in the user manager of whoever asks."""
    command = [sys.executable, "-P", str(HERE / "measure_here.py"), str(results), "--checkout", str(ROOT), *arguments]
    return subprocess.call(command)


def _in_machine(results: Path, arguments: list[str]) -> int:
    """Build the package, install it in a machine, and measure there as its user."""
    subprocess.run([sys.executable, str(ROOT / "packaging/deb.py")], check=True, stdout=subprocess.DEVNULL)
    package = max((ROOT / "build").glob("ccorch_*.deb"), key=lambda path: path.stat().st_mtime)
    with tempfile.TemporaryDirectory(prefix="ccorch-bench-") as name:
        shared = Path(name)
        shared.chmod(0o755)
        shutil.copy(package, shared)
        binds = [Bind(str(ROOT), "/src", read_only=True), Bind(name, "/results")]
        machine = Machine.boot(f"bench-{os.getpid()}", binds=binds, user="dev")
        try:
            # Container images forbid that packages start services; a machine with a systemd has no such policy.
            machine.run(["rm", "-f", "/usr/sbin/policy-rc.d"], user="root", check=True)
            install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", f"/results/{package.name}"]
            environment = {"DEBIAN_FRONTEND": "noninteractive"}
            machine.run(install, user="root", env=environment, timeout=180, check=True)
            command = ["/usr/bin/python3", "-P", "/src/tests/bench/measure_here.py", "/results/rows.json", *arguments]
            status = subprocess.call(
                machine.argv(command, env={"PYTHONDONTWRITEBYTECODE": "1"}), stdin=subprocess.DEVNULL
            )
        finally:
            machine.stop()
        if status == 0:
            shutil.copy(shared / "rows.json", results)
    return status


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", default="", help="measures by name: launch,ready,memory,hook,listing")
    parser.add_argument("--rounds", default="1", help="factor for the number of runs")
    options = parser.parse_args()
    arguments = [f"--only={options.only}", f"--rounds={options.rounds}"]
    OUT.mkdir(parents=True, exist_ok=True)
    rows_file = OUT / "rows.json"
    host = _host()
    try:
        status = _in_machine(rows_file, arguments) if os.geteuid() == 0 else _here(rows_file, arguments)
    except (MachineError, subprocess.SubprocessError) as error:
        print(error, file=sys.stderr)
        return 1
    if status:
        print(f"The measurements broke off with status {status}.", file=sys.stderr)
        return 1
    rows = [Row.from_json(fields) for fields in json.loads(rows_file.read_text(encoding="utf-8"))]
    rows_file.unlink()
    results = OUT / "results.json"
    content = {"host": host, "rows": [row.as_json() for row in rows]}
    results.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"\n{host['cpus']} CPUs ({host['model']}), {host['system']}; load {host['load']}\n")
    print(table(rows))
    print(f"\nEvery run: {results.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

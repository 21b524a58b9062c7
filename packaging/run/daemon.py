# SPDX-License-Identifier: LGPL-2.1-or-later
"""ccorchd of a trial run: a transient user unit made from the real one, under names of its own."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from run.places import CHECKOUT, NAME, STEM, Place
from run.problem import Problem

UNIT = f"ccorchd_{NAME}.service"
SLICE = f"{STEM}.slice"
BUS_NAME = f"org.ccorch1_{NAME}"


def _quoted(text: str) -> str:
    """Quote for a unit file: systemd.syntax(7), and ``%`` begins a specifier there."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'


def unit_text(template: str, python: str, variables: dict[str, str]) -> str:
    """Return the trial's unit: the installed one's text with this program, these names and no [Install]."""
    text = template.partition("\n[Install]")[0]
    changes = {
        r"^ExecStart=.*$": f"ExecStart={_quoted(python)} -m ccorchd",
        r"^(ExecReload=.*) org\.ccorch1 /": rf"\g<1> {BUS_NAME} /",
        r"^RuntimeDirectory=.*$": f"RuntimeDirectory={STEM}",
    }
    for pattern, replacement in changes.items():
        text, count = re.subn(pattern, replacement.replace("\\ ", " "), text, flags=re.MULTILINE)
        if count != 1:
            raise Problem(f"units/user/ccorchd.service has no line for {pattern}: this checkout is not complete.")
    lines = "".join(f"Environment={_quoted(f'{key}={value}')}\n" for key, value in sorted(variables.items()))
    return text.replace("[Service]\n", "[Service]\n" + lines, 1) + "\n"


def start(place: Place) -> None:
    """Write the units, start the daemon and return when it says that it is ready."""
    template = (CHECKOUT / "units/user/ccorchd.service").read_text(encoding="utf-8")
    slice_text = (CHECKOUT / "units/user/ccorch.slice").read_text(encoding="utf-8")
    script = 'set -e; mkdir -p "$XDG_RUNTIME_DIR/systemd/user"; cat >"$XDG_RUNTIME_DIR/systemd/user/$1"'
    for name, text in ((UNIT, unit_text(template, place.python, place.variables)), (SLICE, slice_text)):
        done = place.run(["sh", "-c", script, "sh", name], text_input=text)
        if done.returncode:
            raise Problem(f"The unit {name} cannot be written: {done.stderr.strip()}")
    _systemctl(place, "daemon-reload")
    done = _systemctl(place, "start", UNIT, timeout=100)
    if done.returncode:
        journal = place.run(["journalctl", "--user", "-q", "--no-pager", "-o", "cat", "-n", "8", "-u", UNIT])
        said = [line for line in journal.stdout.splitlines() if line.strip()]
        raise Problem("ccorchd does not start:\n  " + "\n  ".join(said or [done.stderr.strip()]))


def _systemctl(place: Place, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return place.run(["systemctl", "--user", *arguments], timeout=timeout)


def ctl_command(place: Place, *arguments: str) -> list[str]:
    return [place.python, "-m", "ccorchctl", *arguments]


def ctl(place: Place, *arguments: str, timeout: float = 60, cwd: str = "") -> subprocess.CompletedProcess[str]:
    """Run ccorchctl of the trial."""
    return place.run(ctl_command(place, *arguments), timeout=timeout, cwd=cwd)


def answer(place: Place, *arguments: str, timeout: float = 60) -> Any:
    """Return what ccorchctl prints as JSON. Raise Problem with its sentence when it fails."""
    done = ctl(place, "-o", "json", *arguments, timeout=timeout)
    if done.returncode:
        raise Problem(f"ccorchctl {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
    return json.loads(done.stdout)


def instances(place: Place, project: str = "") -> list[dict[str, Any]]:
    rows = answer(place, "instance", "list")
    return [row for row in rows if not project or row["project"] == project]


def register(place: Place) -> str:
    """Return the name of the repository's project, registered now if it was not.

    ``ccorchctl init`` would write .ccorch.toml and turn on lingering: not for a trial to do in somebody's repository.
    """
    return str(answer(place, "project", "add", place.repository)["name"])


def main_pid(place: Place) -> int:
    text = _systemctl(place, "show", "--property=MainPID", "--value", UNIT).stdout.strip()
    return int(text) if text.isdigit() else 0


def kill(place: Place) -> float:
    """SIGKILL the daemon and wait until the next one answers; return how many seconds that took."""
    before = main_pid(place)
    began = time.monotonic()
    _systemctl(place, "kill", "--signal=KILL", "--kill-whom=main", UNIT)
    deadline = began + 30 * place.slow
    while time.monotonic() < deadline:
        if main_pid(place) not in (0, before) and ctl(place, "-o", "json", "status").returncode == 0:
            return time.monotonic() - began
        time.sleep(0.1)
    raise Problem("ccorchd did not come back after SIGKILL.")


def is_active(place: Place) -> bool:
    return _systemctl(place, "is-active", "--quiet", UNIT).returncode == 0


def stop(place: Place) -> None:
    """End the daemon and its instances, and remove the units and the runtime directory."""
    if is_active(place):
        ctl(place, "--yes", "shutdown", timeout=120)
    for unit in (UNIT, SLICE):
        _systemctl(place, "stop", unit, timeout=120)
    script = (
        'rm -f "$XDG_RUNTIME_DIR/systemd/user/$1" "$XDG_RUNTIME_DIR/systemd/user/$2"; rm -rf "$XDG_RUNTIME_DIR/$3"; '
        'systemctl --user daemon-reload; systemctl --user reset-failed "$1" "$2" "$3-*" 2>/dev/null; '
        'rmdir "$XDG_RUNTIME_DIR/systemd/user" 2>/dev/null; true'
    )
    place.run(["sh", "-c", script, "sh", UNIT, SLICE, STEM])


def leftovers(place: Place) -> Sequence[str]:
    """Return the trial's units that are still loaded."""
    listing = _systemctl(place, "list-units", "--all", "--plain", "--no-legend", f"{STEM}*", f"ccorchd_{NAME}*")
    return [line.split()[0] for line in listing.stdout.splitlines() if line.split()]

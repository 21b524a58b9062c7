# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon on PyPI's newest libraries in a venv, on the same systemd."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from daemons import Daemon, run, suffix_for

CHECKOUT = Path(__file__).resolve().parents[2]
PYTHON = CHECKOUT / ".cache/venv-pypi/bin/python"


@pytest.fixture
def newest(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon from the checkout, run by the venv's Python."""
    found = Daemon(suffix_for("pypi"), tmp_path)
    found.start(
        program=f"{PYTHON} -m ccorchd",
        PYTHONPATH=str(CHECKOUT),
        PYTHONDONTWRITEBYTECODE="1",
        CCORCH_INSTANCES_AGENT="demo",
    )
    try:
        yield found
    finally:
        found.close()
        assert not found.scopes()


def test_main_job_on_the_newest_libraries(newest: Daemon, repository: Path) -> None:
    shown = run(str(PYTHON), "-c", "import importlib.metadata as m; print(m.version('peewee'), m.version('libtmux'))")
    peewee, libtmux = shown.stdout.split()
    assert int(peewee.split(".")[0]) >= 4, shown.stderr
    assert [int(part) for part in libtmux.split(".")[:2]] >= [0, 40]
    assert Path(f"/proc/{newest.pid}/cmdline").read_text().startswith(str(PYTHON))
    newest.ok("init", str(repository), "--name", "sample", "--yes")
    newest.ok("instance", "create", "sample/new", "--prompt", "Add a changelog entry about walnuts")
    before = newest.wait_state("sample/new", "idle")
    newest.kill()
    assert newest.instance("sample/new")["pid"] == before["pid"]
    newest.ok("instance", "send", "sample/new", "Add a docs page about hazelnuts")
    newest.wait_state("sample/new", "idle")
    newest.ok("instance", "restart", "sample/new")
    newest.wait_state("sample/new", "idle")
    newest.ok("instance", "remove", "sample/new", "--force", "--yes")
    assert not newest.scopes()

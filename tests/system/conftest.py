# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fixtures of the tier that runs inside a booted machine, as an ordinary user, against the installed package."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from daemons import Daemon, make_repository, suffix_for


@pytest.fixture
def daemon(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Daemon]:
    """A running daemon of this test's own; afterwards no scope, process, socket or folder of it may be left."""
    found = Daemon(suffix_for(request.node.name), tmp_path)
    found.start(CCORCH_INSTANCES_AGENT="demo", CCORCH_USAGE_INTERVAL="0.3")
    try:
        yield found
    finally:
        found.close()
        assert not found.scopes()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository with one commit."""
    return make_repository(tmp_path / "sample")


@pytest.fixture
def project(daemon: Daemon, repository: Path) -> str:
    """The repository, registered as the project ``sample``."""
    daemon.ok("init", str(repository), "--name", "sample", "--yes")
    return "sample"

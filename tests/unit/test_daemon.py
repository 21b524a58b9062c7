# SPDX-License-Identifier: LGPL-2.1-or-later
"""A reload reaches what was made from the settings at the start."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ccorchd import config
from ccorchd.contract import Naming
from ccorchd.daemon import Daemon
from ccorchd.events import Broadcast
from ccorchd.history import History
from ccorchd.host.journal import Journal
from ccorchd.model import Event


async def test_a_reload_makes_agents_and_the_journals_limit_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    naming = Naming()
    naming.config_dir.mkdir(parents=True)
    settings = config.load(naming.config_dir, {})
    journal = Journal(path="/nonexistent", limit=int(settings["logs.lines_per_10s"]))
    told: list[Event] = []

    async def record(event: Event) -> None:
        told.append(event)

    storage: Any = None
    history = History(storage, journal, Broadcast("events"))
    monkeypatch.setattr(history, "record", record)
    instances = SimpleNamespace(agents={})
    parts: Any = SimpleNamespace(history=history, orchestrator=SimpleNamespace(instances=instances))
    (naming.config_dir / "ccorchd.toml").write_text("[claude]\ncommand = 'other'\n[logs]\nlines_per_10s = 7\n")
    daemon: Any = SimpleNamespace(_naming=naming)
    await Daemon._reload(daemon, settings, parts)
    with pytest.raises(Exception, match="other"):
        instances.agents["claude"].check({"PATH": "/nonexistent"}, {})
    assert journal.limit == 7
    assert told[0].message == "settings read again: logs.lines_per_10s, claude.command"

# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ccorchd.storage import Storage


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ccorch.db"


@pytest.fixture
async def storage(path: Path) -> AsyncIterator[Storage]:
    storage = await Storage.open(path)
    yield storage
    await storage.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "storage"]

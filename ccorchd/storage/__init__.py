# SPDX-License-Identifier: LGPL-2.1-or-later
"""The database: the only owner of SQL and of peewee. Others import :class:`Storage` and :class:`Store` from here."""

from __future__ import annotations

from ccorchd.storage.database import Storage
from ccorchd.storage.store import Store

__all__ = ["Storage", "Store"]

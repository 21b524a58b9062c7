# SPDX-License-Identifier: LGPL-2.1-or-later
"""What happened, told three times from one place: a row in the database, a line in the journal, a signal to listeners.

The row comes first and is the truth. Whoever changes other rows in the same breath adds the event within that
transaction (``store.add_event``) and hands the stored event to :meth:`History.publish` once it is committed.
"""

from __future__ import annotations

from ccorchd.events import Broadcast
from ccorchd.host.journal import Journal
from ccorchd.model import Event
from ccorchd.storage import Storage, Store


class History:
    """Records events and passes them on."""

    def __init__(self, storage: Storage, journal: Journal, added: Broadcast[Event]) -> None:
        self._storage = storage
        self._journal = journal
        self._added = added

    def limit_journal(self, lines: int) -> None:
        """Let each instance cause at most *lines* journal lines in ten seconds from now on."""
        self._journal.limit = lines

    async def record(self, event: Event, *, unit: str | None = None) -> Event | None:
        """Store and publish *event*; return it with its id, or None if its ``uid`` had been stored before."""

        def work(store: Store) -> Event | None:
            return store.add_event(event)

        stored = await self._storage.run(work)
        if stored is not None:
            self.publish(stored, unit=unit)
        return stored

    def publish(self, event: Event, *, unit: str | None = None) -> None:
        """Tell journal and listeners of an event that is committed. *unit* makes the line one of that unit's."""
        self._journal.event(event, unit)
        self._added.publish(event)

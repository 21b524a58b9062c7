# SPDX-License-Identifier: LGPL-2.1-or-later
"""The one place where an instance's state changes: rules, row, event and announcement in one step.

```
            start                report            turn begins
 stopped ─────────► starting ─────────► idle ─────────────► working ◄──► waiting
 failed                 │                 ▲                    │
    ▲                   │                 └────────────────────┘ turn ends
    │      stop         ▼
    └──── stopping ◄── any of the running ones; an end that nobody asked for goes to stopped (exit 0) or failed
```
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType

from ccorchd.contract import Reason, State
from ccorchd.events import Broadcast
from ccorchd.history import History
from ccorchd.model import Change, Event, InstanceRecord
from ccorchd.storage import Storage, Store


class Changes:
    """Holds the records of all instances and applies changes to them, database first."""

    def __init__(self, storage: Storage, history: History, changed: Broadcast[InstanceRecord]) -> None:
        self._storage = storage
        self._history = history
        self._changed = changed
        self.records: dict[int, InstanceRecord] = {}

    async def load(self) -> None:
        """Read all records from the database."""
        self.records = {record.id: record for record in await self._storage.run(Store.instances)}

    async def apply(
        self,
        instance_id: int,
        change: Change,
        *,
        unit: str | None = None,
        uid: str | None = None,
        actor: str = "agent",
        from_report: bool = False,
        columns: Mapping[str, object] = MappingProxyType({}),
    ) -> bool:
        """Apply *change* and further *columns* and record the event, in one transaction; tell whether it was new.

        A change with a *uid* that is already stored does nothing at all: that is how a report that was sent twice, or
        both acknowledged and spooled, counts once. A report (*from_report*) never brings an instance back that is
        stopping, stopped or failed; what it says is still recorded.
        """
        now = time.time()

        def work(store: Store) -> tuple[InstanceRecord, Event | None] | None:
            record = store.instance_by_id(instance_id)
            stored = None
            if change.kind:
                stored = store.add_event(
                    Event(
                        kind=change.kind,
                        message=change.message,
                        actor=actor,
                        priority=change.priority,
                        data=change.data,
                        uid=uid,
                        instance_id=instance_id,
                        project_id=record.project_id,
                        project=record.project,
                        instance=record.name,
                    )
                )
                if stored is None:
                    return None
            wanted = {**columns, **self._columns(record, change, now, from_report)}
            if wanted:
                record = store.update_instance(instance_id, **wanted)
            return record, stored

        outcome = await self._storage.run(work)
        if outcome is None:
            return False
        record, stored = outcome
        before = self.records.get(instance_id)
        self.records[instance_id] = record
        if stored is not None:
            self._history.publish(stored, unit=unit)
        if record != before:
            self._changed.publish(record)
        return True

    @staticmethod
    def _columns(record: InstanceRecord, change: Change, now: float, from_report: bool) -> dict[str, object]:
        if from_report and (not record.state.running or record.state is State.STOPPING):
            return {}
        result: dict[str, object] = {}
        if change.state is not None:
            if (change.state, change.reason) != (record.state, record.reason):
                result["since"] = now
            result.update(state=change.state, reason=change.reason, reason_text=change.reason_text)
        if change.doing is not None:
            result["doing"] = change.doing
        if change.session_id:
            result["session_id"] = change.session_id
        return result

    def add(self, record: InstanceRecord) -> None:
        """Take in a record that has just been created."""
        self.records[record.id] = record
        self._changed.publish(record)

    def discard(self, instance_id: int) -> None:
        """Forget a record that has been removed from the database."""
        self.records.pop(instance_id, None)

    @property
    def running(self) -> list[InstanceRecord]:
        """Records of instances that have, or are about to have, processes."""
        return [record for record in self.records.values() if record.state.running]


def requested(state: State, message: str, kind: str) -> Change:
    """Return the change that somebody's request makes."""
    return Change(state=state, reason=Reason.REQUESTED, kind=kind, message=message, priority=5, doing="")

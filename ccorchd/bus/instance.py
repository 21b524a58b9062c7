# SPDX-License-Identifier: LGPL-2.1-or-later
"""``org.ccorch1.Instance``: one object per instance under ``/org/ccorch1/instance``."""

from __future__ import annotations

from typing import Any, Final

from ccorchd.bus.guard import Guard, guarded
from ccorchd.bus.options import Options
from ccorchd.contract import INSTANCE_FIELDS, INSTANCE_INTERFACE
from ccorchd.host.dbus import PropertyAccess, ServiceInterface, Variant, dbus_property, method, variants
from ccorchd.model import InstanceRecord
from ccorchd.orchestrator import Orchestrator
from ccorchd.records import instance_fields, microseconds

PROPERTIES: Final = (
    "Name", "Project", "Address", "State", "Reason", "ReasonText", "Since", "Doing", "Agent", "SessionId",
    "Branch", "Worktree", "Unit", "Pid", "Restarts",
)  # fmt: skip


class InstanceInterface(ServiceInterface):  # type: ignore[misc]
    """The verbs of one instance. Properties are those that change seldom; usage comes with ``Describe``."""

    def __init__(self, orchestrator: Orchestrator, guard: Guard, record: InstanceRecord) -> None:
        super().__init__(INSTANCE_INTERFACE)
        self.guard = guard
        self._orchestrator = orchestrator
        self._id = record.id
        self._record = record

    def subject(self) -> str:
        return str(self._record.address)

    def values(self) -> dict[str, object]:
        """Return all properties with plain values."""
        return {name: getattr(self, name) for name in PROPERTIES}

    def update(self, record: InstanceRecord) -> None:
        """Take the new record and signal the properties that differ."""
        before = self.values()
        self._record = record
        changed = {name: value for name, value in self.values().items() if value != before[name]}
        if changed:
            self.emit_properties_changed(changed)

    def fields(self) -> dict[str, Variant]:
        record = self._record
        instances = self._orchestrator.instances
        return variants(INSTANCE_FIELDS, instance_fields(record, instances.unit(record), instances.usage(record.id)))

    @method()
    @guarded(mutating=False)
    async def Describe(self) -> "a{sv}":  # noqa: F722
        return self.fields()

    @method()
    @guarded(mutating=True)
    async def Start(self, options: "a{sv}") -> None:  # noqa: F722
        given = Options(options, {"environment": "a{ss}", "prompt": "s"})
        await self._orchestrator.start(
            self._id,
            environment=given.mapping("environment"),
            prompt=given.text("prompt"),
            actor=await self.guard.actor(),
        )

    @method()
    @guarded(mutating=True)
    async def Stop(self, options: "a{sv}") -> None:  # noqa: F722
        Options(options, {})
        await self._orchestrator.stop(self._id, actor=await self.guard.actor())

    @method()
    @guarded(mutating=True)
    async def Restart(self, options: "a{sv}") -> None:  # noqa: F722
        given = Options(options, {"environment": "a{ss}"})
        await self._orchestrator.restart(
            self._id, environment=given.mapping("environment"), actor=await self.guard.actor()
        )

    @method()
    @guarded(mutating=True)
    async def Remove(self, options: "a{sv}") -> "a{sv}":  # noqa: F722
        given = Options(options, {"force": "b"})
        branch = self._record.branch
        removed = await self._orchestrator.remove(self._id, force=given.flag("force"), actor=await self.guard.actor())
        return {
            "branch": Variant("s", branch),
            "branch_deleted": Variant("b", removed.branch_deleted),
            "kept_ref": Variant("s", removed.kept_ref),
        }

    @method()
    @guarded(mutating=True)
    async def Send(self, text: "s", options: "a{sv}") -> "b":  # type: ignore[name-defined]  # noqa: F722, F821
        Options(options, {})
        return await self._orchestrator.send(self._id, text, actor=await self.guard.actor())

    @method()
    @guarded(mutating=True)
    async def Interrupt(self) -> None:
        await self._orchestrator.instances.interrupt(self._id)

    @method()
    @guarded(mutating=True)
    async def Attach(self, read_only: "b", window: "s") -> "asa{ss}":  # type: ignore[name-defined]  # noqa: F722, F821
        argv = self._orchestrator.instances.attach_argv(self._id, read_only=read_only, window=window)
        return [argv, {}]

    @method()
    @guarded(mutating=True)
    async def Detach(self) -> "u":  # type: ignore[name-defined]  # noqa: F821
        return await self._orchestrator.instances.detach(self._id)

    @method()
    @guarded(mutating=False)
    async def Screen(self) -> "s":  # type: ignore[name-defined]  # noqa: F821
        return await self._orchestrator.instances.screen(self._id)

    @method()
    @guarded(mutating=False)
    async def Diff(self, options: "a{sv}") -> "s":  # type: ignore[name-defined]  # noqa: F722, F821
        given = Options(options, {"stat": "b"})
        return await self._orchestrator.diff(self._id, stat=given.flag("stat"))

    @method()
    @guarded(mutating=False)
    async def Commits(self) -> "a(ss)":  # noqa: F722
        return [list(commit) for commit in await self._orchestrator.commits(self._id)]

    @method()
    @guarded(mutating=True)
    async def Merge(self) -> "s":  # type: ignore[name-defined]  # noqa: F821
        return await self._orchestrator.merge(self._id, actor=await self.guard.actor())


def _read_only(name: str, signature: str, value: Any) -> None:
    """Add the read-only property *name* to the interface; *value* makes it from the record.

    dbus-next takes the signature from the return annotation, so each getter gets one of its own.
    """

    def getter(self: InstanceInterface) -> Any:
        return value(self)

    getter.__name__ = name
    getter.__annotations__ = {"return": signature}
    setattr(InstanceInterface, name, dbus_property(access=PropertyAccess.READ)(getter))


_read_only("Name", "s", lambda self: self._record.name)
_read_only("Project", "s", lambda self: self._record.project)
_read_only("Address", "s", lambda self: str(self._record.address))
_read_only("State", "s", lambda self: str(self._record.state))
_read_only("Reason", "s", lambda self: str(self._record.reason))
_read_only("ReasonText", "s", lambda self: self._record.reason_text)
_read_only("Since", "t", lambda self: microseconds(self._record.since))
_read_only("Doing", "s", lambda self: self._record.doing)
_read_only("Agent", "s", lambda self: self._record.agent)
_read_only("SessionId", "s", lambda self: self._record.session_id)
_read_only("Branch", "s", lambda self: self._record.branch)
_read_only("Worktree", "s", lambda self: self._record.worktree)
_read_only("Unit", "s", lambda self: self._orchestrator.instances.unit(self._record))
_read_only("Pid", "u", lambda self: self._record.pid)
_read_only("Restarts", "u", lambda self: self._record.restarts)

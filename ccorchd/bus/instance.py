# SPDX-License-Identifier: LGPL-2.1-or-later
"""``org.ccorch1.Instance``: one object per instance under ``/org/ccorch1/instance``."""

from __future__ import annotations

from collections.abc import Sequence

from ccorchd.bus.guard import Guard, exposed, property_values, readable
from ccorchd.bus.options import Options
from ccorchd.contract import INSTANCE_FIELDS, INSTANCE_INTERFACE
from ccorchd.host.dbus import ServiceInterface, Variant, variants
from ccorchd.model import InstanceRecord
from ccorchd.orchestrator import Orchestrator
from ccorchd.records import instance_fields, microseconds


class InstanceInterface(ServiceInterface):
    """The verbs of one instance. Properties are those that change seldom; usage comes with ``Describe``."""

    def __init__(self, orchestrator: Orchestrator, guard: Guard, record: InstanceRecord) -> None:
        super().__init__(INSTANCE_INTERFACE)
        self.guard = guard
        self._orchestrator = orchestrator
        self._record = record

    def subject(self, member: str, arguments: Sequence[object]) -> str:
        return str(self._record.address)

    @readable("s")
    def Name(self) -> str:
        return self._record.name

    @readable("s")
    def Project(self) -> str:
        return self._record.project

    @readable("s")
    def Address(self) -> str:
        return str(self._record.address)

    @readable("s")
    def State(self) -> str:
        return str(self._record.state)

    @readable("s")
    def Reason(self) -> str:
        return str(self._record.reason)

    @readable("s")
    def ReasonText(self) -> str:
        return self._record.reason_text

    @readable("t")
    def Since(self) -> int:
        return microseconds(self._record.since)

    @readable("s")
    def Doing(self) -> str:
        return self._record.doing

    @readable("s")
    def Agent(self) -> str:
        return self._record.agent

    @readable("s")
    def SessionId(self) -> str:
        return self._record.session_id

    @readable("s")
    def Branch(self) -> str:
        return self._record.branch

    @readable("s")
    def Worktree(self) -> str:
        return self._record.worktree

    @readable("s")
    def Unit(self) -> str:
        return self._orchestrator.instances.unit(self._record)

    @readable("u")
    def Pid(self) -> int:
        return self._record.pid

    @readable("u")
    def Restarts(self) -> int:
        return self._record.restarts

    def update(self, record: InstanceRecord) -> None:
        """Take the new record and signal the properties that differ."""
        before = property_values(self)
        self._record = record
        changed = {name: value.value for name, value in property_values(self).items() if value != before[name]}
        if changed:
            self.emit_properties_changed(changed)

    @exposed("", "a{sv}", mutating=False)
    async def Describe(self) -> dict[str, Variant]:
        return describe(self._orchestrator, self._record)

    @exposed("a{sv}", mutating=True)
    async def Start(self, options: dict[str, Variant]) -> None:
        given = Options(options, {"environment": "a{ss}", "prompt": "s"})
        await self._orchestrator.start(
            self._record.id,
            environment=given.mapping("environment"),
            prompt=given.text("prompt"),
            actor=await self.guard.actor(),
        )

    @exposed("a{sv}", mutating=True)
    async def Stop(self, options: dict[str, Variant]) -> None:
        Options(options, {})
        await self._orchestrator.stop(self._record.id, actor=await self.guard.actor())

    @exposed("a{sv}", mutating=True)
    async def Restart(self, options: dict[str, Variant]) -> None:
        given = Options(options, {"environment": "a{ss}"})
        await self._orchestrator.restart(
            self._record.id, environment=given.mapping("environment"), actor=await self.guard.actor()
        )

    @exposed("a{sv}", "a{sv}", mutating=True)
    async def Remove(self, options: dict[str, Variant]) -> dict[str, Variant]:
        given = Options(options, {"force": "b"})
        branch = self._record.branch
        removed = await self._orchestrator.remove(
            self._record.id, force=given.flag("force"), actor=await self.guard.actor()
        )
        return {
            "branch": Variant("s", branch),
            "branch_deleted": Variant("b", removed.branch_deleted),
            "kept_ref": Variant("s", removed.kept_ref),
        }

    @exposed("s a{sv}", "b", mutating=True)
    async def Send(self, text: str, options: dict[str, Variant]) -> bool:
        Options(options, {})
        return await self._orchestrator.send(self._record.id, text, actor=await self.guard.actor())

    @exposed(mutating=True)
    async def Interrupt(self) -> None:
        await self._orchestrator.instances.interrupt(self._record.id)

    @exposed("b s", "asa{ss}", mutating=True)
    async def Attach(self, read_only: bool, window: str) -> list[object]:
        argv = self._orchestrator.instances.attach_argv(self._record.id, read_only=read_only, window=window)
        return [argv, {}]

    @exposed("", "u", mutating=True)
    async def Detach(self) -> int:
        return await self._orchestrator.instances.detach(self._record.id)

    @exposed("", "s", mutating=False)
    async def Screen(self) -> str:
        return await self._orchestrator.instances.screen(self._record.id)

    @exposed("a{sv}", "s", mutating=False)
    async def Diff(self, options: dict[str, Variant]) -> str:
        given = Options(options, {"stat": "b"})
        return await self._orchestrator.diff(self._record.id, stat=given.flag("stat"))

    @exposed("", "a(ss)", mutating=False)
    async def Commits(self) -> list[list[str]]:
        return [list(commit) for commit in await self._orchestrator.commits(self._record.id)]

    @exposed("", "s", mutating=True)
    async def Merge(self) -> str:
        return await self._orchestrator.merge(self._record.id, actor=await self.guard.actor())


def describe(orchestrator: Orchestrator, record: InstanceRecord) -> dict[str, Variant]:
    """Return the instance's record, with what it uses."""
    instances = orchestrator.instances
    return variants(INSTANCE_FIELDS, instance_fields(record, instances.unit(record), instances.usage(record.id)))

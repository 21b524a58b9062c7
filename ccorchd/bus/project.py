# SPDX-License-Identifier: LGPL-2.1-or-later
"""``org.ccorch1.Project``: one object per registered repository under ``/org/ccorch1/project``."""

from __future__ import annotations

from collections.abc import Sequence

from ccorchd.bus.guard import Guard, exposed, readable
from ccorchd.bus.options import Options
from ccorchd.contract import PROJECT_FIELDS, PROJECT_INTERFACE
from ccorchd.errors import CcorchError
from ccorchd.host.dbus import ServiceInterface, Variant, variants
from ccorchd.model import ProjectRecord
from ccorchd.orchestrator import Orchestrator
from ccorchd.records import microseconds, project_fields


class ProjectInterface(ServiceInterface):
    """The verbs of one project."""

    def __init__(self, orchestrator: Orchestrator, guard: Guard, project: ProjectRecord) -> None:
        super().__init__(PROJECT_INTERFACE)
        self.guard = guard
        self._orchestrator = orchestrator
        self._project = project

    def subject(self, member: str, arguments: Sequence[object]) -> str:
        return self._project.name

    @readable("s")
    def Name(self) -> str:
        return self._project.name

    @readable("s")
    def Repository(self) -> str:
        return self._project.repository

    @readable("t")
    def Created(self) -> int:
        return microseconds(self._project.created)

    @exposed("", "a{sv}", mutating=False)
    async def Describe(self) -> dict[str, Variant]:
        return describe(self._orchestrator, self._project)

    @exposed("s", mutating=True)
    async def AgreeSetup(self, digest: str) -> None:
        await self._orchestrator.agree(self._project, digest, actor=await self.guard.actor())

    @exposed("a{sv}", mutating=True)
    async def Remove(self, options: dict[str, Variant]) -> None:
        Options(options, {})
        await self._orchestrator.unregister(self._project, actor=await self.guard.actor())


def describe(orchestrator: Orchestrator, project: ProjectRecord) -> dict[str, Variant]:
    """Return the project's record; a broken .ccorch.toml does not hide the project, it shows as not agreed."""
    count = sum(record.project_id == project.id for record in orchestrator.instances.records.values())
    try:
        file, agreed = orchestrator.setup_of(project)
        setup, digest = file.asks, file.digest
    except CcorchError as error:
        setup, digest, agreed = [error.message], "", False
    return variants(PROJECT_FIELDS, project_fields(project, count, setup, digest, agreed))

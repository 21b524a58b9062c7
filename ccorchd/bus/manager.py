# SPDX-License-Identifier: LGPL-2.1-or-later
"""``org.ccorch1.Manager`` at ``/org/ccorch1``: the way in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from ccorchd import __version__
from ccorchd.bus.guard import Guard, announced, exposed, readable
from ccorchd.bus.instance import describe as describe_instance
from ccorchd.bus.options import Options
from ccorchd.bus.project import describe as describe_project
from ccorchd.contract import (
    API_VERSION,
    CHECK_FIELDS,
    EVENT_FIELDS,
    MANAGER_INTERFACE,
    SETTING_FIELDS,
    WORKTREE_FIELDS,
    ErrorCode,
    State,
)
from ccorchd.creation import Wish
from ccorchd.doctor import Doctor
from ccorchd.errors import CcorchError
from ccorchd.host.dbus import ServiceInterface, Variant, variants
from ccorchd.host.secrets import Secrets
from ccorchd.instances.environment import caller_patterns
from ccorchd.model import Address, Event
from ccorchd.orchestrator import Orchestrator
from ccorchd.records import event_fields, instance_path, project_path
from ccorchd.storage import Store

_MOST_EVENTS = 10_000
_STATUS_FIELDS = {
    "version": "s",
    "pid": "u",
    "started": "t",
    "deployment": "s",
    "projects": "u",
    "instances": "u",
    "states": "a{su}",
    "max_instances": "u",
    "host_memory": "t",
    "memory_available": "t",
    "memory_pressure": "d",
    "cpu_pressure": "d",
    "cpus": "u",
    "load": "d",
    "enforced": "as",
    "unenforced": "as",
    "linger": "b",
    "enabled": "b",
    "config_dir": "s",
    "state_dir": "s",
    "data_dir": "s",
    "runtime_dir": "s",
    "slice": "s",
    "unit": "s",
}


class ManagerInterface(ServiceInterface):
    """Everything that is not a verb of one project or instance."""

    def __init__(
        self,
        orchestrator: Orchestrator,
        guard: Guard,
        doctor: Doctor,
        secrets: Secrets,
        reload: Callable[[], Awaitable[None]],
        quit_soon: Callable[[], None],
    ) -> None:
        super().__init__(MANAGER_INTERFACE)
        self.guard = guard
        self._orchestrator = orchestrator
        self._doctor = doctor
        self._secrets = secrets
        self._reload = reload
        self._quit_soon = quit_soon

    def subject(self, member: str, arguments: Sequence[object]) -> str:
        if member == "CreateInstance":
            return f"{arguments[0]}/{arguments[1]}"
        return ""

    @readable("s")
    def Version(self) -> str:
        return __version__

    @readable("u")
    def ApiVersion(self) -> int:
        return API_VERSION

    @readable("s")
    def Suffix(self) -> str:
        return self._orchestrator.naming.suffix

    @readable("as")
    def CallerVariables(self) -> list[str]:
        return caller_patterns(self._orchestrator.config["agents.environment"])

    @announced("a{sv}")
    def EventAdded(self, event: dict[str, Variant]) -> dict[str, Variant]:
        return event

    def announce(self, event: Event) -> None:
        """Signal a new event row."""
        self.EventAdded(variants(EVENT_FIELDS, event_fields(event)))

    # -- projects --------------------------------------------------------------------------------------------------

    @exposed("s a{sv}", "o", mutating=True)
    async def RegisterProject(self, repository: str, options: dict[str, Variant]) -> str:
        given = Options(options, {"name": "s"})
        project = await self._orchestrator.register(repository, given.text("name"), actor=await self.guard.actor())
        return project_path(project.id)

    @exposed("", "aa{sv}", mutating=False)
    async def ListProjects(self) -> list[dict[str, Variant]]:
        projects = sorted(self._orchestrator.projects.values(), key=lambda project: project.name)
        return [describe_project(self._orchestrator, project) for project in projects]

    @exposed("s", "o", mutating=False)
    async def GetProject(self, name: str) -> str:
        return project_path(self._orchestrator.project(name).id)

    @exposed("s", "a{sv}", mutating=False)
    async def FindProject(self, path: str) -> dict[str, Variant]:
        project, instance = await self._orchestrator.find(path)
        found = describe_project(self._orchestrator, project)
        if instance:
            found["instance"] = Variant("s", instance)
        return found

    # -- instances -------------------------------------------------------------------------------------------------

    @exposed("s s a{sv}", "o", mutating=True)
    async def CreateInstance(self, project: str, name: str, options: dict[str, Variant]) -> str:
        given = Options(
            options,
            {
                "agent": "s",
                "prompt": "s",
                "base": "s",
                "branch": "s",
                "limits": "a{ss}",
                "environment": "a{ss}",
                "variables": "a{ss}",
                "options": "a{ss}",
                "start": "b",
            },
        )
        wish = Wish(
            agent=given.text("agent"),
            prompt=given.text("prompt"),
            base=given.text("base"),
            branch=given.text("branch"),
            limits=given.mapping("limits"),
            environment=given.mapping("environment"),
            variables=given.mapping("variables"),
            options=given.mapping("options"),
            start=given.flag("start", True),
        )
        record = await self._orchestrator.create(project, name, wish, actor=await self.guard.actor())
        return instance_path(record.id)

    @exposed("a{sv}", "aa{sv}", mutating=False)
    async def ListInstances(self, filters: dict[str, Variant]) -> list[dict[str, Variant]]:
        given = Options(filters, {"project": "s", "states": "as"})
        if project := given.text("project"):
            self._orchestrator.project(project)
        states = given.texts("states")
        unknown = [state for state in states if state not in set(State)]
        if unknown:
            raise CcorchError(
                ErrorCode.INVALID_ARGUMENT, f"{unknown[0]!r} is no state", f"States are: {', '.join(State)}."
            )
        return [
            describe_instance(self._orchestrator, record)
            for record in sorted(
                self._orchestrator.instances.records.values(), key=lambda record: (record.project, record.name)
            )
            if (not project or record.project == project) and (not states or record.state in states)
        ]

    @exposed("s", "o", mutating=False)
    async def GetInstance(self, address: str) -> str:
        return instance_path(self._orchestrator.instance(address).id)

    @exposed("s", "aa{sv}", mutating=False)
    async def ListWorktrees(self, project: str) -> list[dict[str, Variant]]:
        rows = await self._orchestrator.list_worktrees(project)
        return [variants(WORKTREE_FIELDS, row) for row in rows]

    # -- events ----------------------------------------------------------------------------------------------------

    @exposed("a{sv}", "aa{sv}", mutating=False)
    async def ListEvents(self, filters: dict[str, Variant]) -> list[dict[str, Variant]]:
        given = Options(
            filters,
            {
                "instance": "s",
                "project": "s",
                "kinds": "as",
                "after": "t",
                "limit": "u",
                "audit": "b",
                "newest": "b",
            },
        )
        address = Address.parse(given.text("instance")) if given.text("instance") else None
        project = self._orchestrator.project(given.text("project")) if given.text("project") else None
        limit = min(given.number("limit", 1000), _MOST_EVENTS)
        kinds = given.texts("kinds") or None
        # Who names kinds gets them; else the trail would say each thing that happened a second time.
        audit = given.flag("audit") or (None if kinds else False)

        def work(store: Store) -> list[Event]:
            return store.events(
                address=address,
                project_id=project.id if project else None,
                kinds=kinds,
                after=given.number("after"),
                limit=limit,
                newest_first=given.flag("newest"),
                audit=audit,
            )

        events = await self._orchestrator.storage.run(work)
        return [variants(EVENT_FIELDS, event_fields(event)) for event in events]

    # -- the host and the daemon -----------------------------------------------------------------------------------

    @exposed("", "a{sv}", mutating=False)
    async def GetStatus(self) -> dict[str, Variant]:
        return variants(_STATUS_FIELDS, await self._doctor.status())

    @exposed("", "aa{sv}", mutating=False)
    async def Doctor(self) -> list[dict[str, Variant]]:
        return [variants(CHECK_FIELDS, finding) for finding in await self._doctor.examine()]

    @exposed("", "as", mutating=True)
    async def PrepareHost(self) -> list[str]:
        return await self._doctor.prepare_host()

    @exposed("", "aa{sv}", mutating=False)
    async def GetSettings(self) -> list[dict[str, Variant]]:
        return [variants(SETTING_FIELDS, row) for row in self._orchestrator.config.rows()]

    @exposed(mutating=True)
    async def Reload(self) -> None:
        await self._reload()

    @exposed(mutating=True)
    async def Shutdown(self) -> None:
        await self._orchestrator.shutdown(why="ccorchctl shutdown")
        self._quit_soon()

    # -- secrets ---------------------------------------------------------------------------------------------------

    @exposed("s s", mutating=True)
    async def SetSecret(self, name: str, value: str) -> None:
        await self._secrets.set(name, value)

    @exposed("s", mutating=True)
    async def RemoveSecret(self, name: str) -> None:
        await self._secrets.remove(name)

    @exposed("", "as", mutating=False)
    async def ListSecrets(self) -> list[str]:
        return await self._secrets.names()

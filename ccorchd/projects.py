# SPDX-License-Identifier: LGPL-2.1-or-later
"""The verbs of projects, and finding things by their names."""

from __future__ import annotations

from pathlib import Path

from ccorchd import projectfile
from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError
from ccorchd.events import Broadcast
from ccorchd.history import History
from ccorchd.instances import Instances
from ccorchd.model import Address, Event, InstanceRecord, ProjectRecord, check_name
from ccorchd.projectfile import ProjectFile
from ccorchd.storage import Storage, Store
from ccorchd.worktrees import Worktrees


class Projects:
    """Every registered repository, with what its user has agreed to."""

    def __init__(
        self,
        storage: Storage,
        history: History,
        instances: Instances,
        worktrees: Worktrees,
        projects_changed: Broadcast[None],
    ) -> None:
        self.storage = storage
        self.history = history
        self.instances = instances
        self.worktrees = worktrees
        self.projects_changed = projects_changed
        self.projects: dict[int, ProjectRecord] = {}

    async def load(self) -> None:
        """Read the projects from the database."""
        self.projects = {project.id: project for project in await self.storage.run(Store.projects)}

    async def register(self, repository: str, name: str, *, actor: str) -> ProjectRecord:
        """Register the repository that *repository* (a path in it) belongs to; an already registered one is returned.

        Raises ``NotARepository``, ``NoCommits``, ``InvalidName``, ``ProjectExists``.
        """
        if not repository.startswith("/"):
            raise CcorchError(
                ErrorCode.INVALID_ARGUMENT, f"{repository!r} is no absolute path", "Give the path of a git repository."
            )
        found = await self.worktrees.repository(Path(repository))
        root = str(found.root)
        known = next((project for project in self.projects.values() if project.repository == root), None)
        if known is not None:
            if name and name != known.name:
                raise CcorchError(
                    ErrorCode.PROJECT_EXISTS,
                    f"{root} is registered already, as {known.name!r}",
                    f"Projects are not renamed. To use another name: ccorchctl project remove {known.name}",
                )
            return known
        name = check_name(name or _name_from(found.root.name), "a project")
        projectfile.load(found.root)

        def work(store: Store) -> tuple[ProjectRecord, Event | None]:
            project = store.add_project(name, root)
            return project, store.add_event(
                Event(
                    "project.registered",
                    f"registered {root}",
                    project_id=project.id,
                    project=name,
                    actor=actor,
                    priority=5,
                )
            )

        project, event = await self.storage.run(work)
        self.projects[project.id] = project
        if event:
            self.history.publish(event)
        self.projects_changed.publish(None)
        return project

    def project(self, name: str) -> ProjectRecord:
        """Return the project *name*; raise ``NoSuchProject``."""
        for project in self.projects.values():
            if project.name == name:
                return project
        known = ", ".join(sorted(project.name for project in self.projects.values()))
        raise CcorchError(
            ErrorCode.NO_SUCH_PROJECT,
            f"there is no project {name!r}",
            f"Known are: {known}." if known else "Register a repository first: ccorchctl init",
        )

    def project_by_id(self, project_id: int) -> ProjectRecord:
        """Return a project by its number; raise ``NoSuchProject``."""
        if project_id not in self.projects:
            raise CcorchError(ErrorCode.NO_SUCH_PROJECT, f"there is no project number {project_id} any more")
        return self.projects[project_id]

    async def find(self, path: str) -> tuple[ProjectRecord, str]:
        """Return the project that *path* lies in, and the name of the instance if it lies in an instance's worktree."""
        place = Path(path)
        for record in self.instances.records.values():
            if place == Path(record.worktree) or Path(record.worktree) in place.parents:
                return self.project(record.project), record.name
        try:
            root = str((await self.worktrees.repository(place)).root)
        except CcorchError as error:
            if error.code not in (ErrorCode.NOT_A_REPOSITORY, ErrorCode.NO_COMMITS):
                raise
            root = ""
        for project in self.projects.values():
            if project.repository == root:
                return project, ""
        raise CcorchError(
            ErrorCode.NO_SUCH_PROJECT,
            f"{path} is in no registered project",
            "Register the repository with: ccorchctl init"
            if root
            else "Go to a project's checkout, or write project/name.",
        )

    def setup_of(self, project: ProjectRecord) -> tuple[ProjectFile, bool]:
        """Return the project's file and whether the user has agreed to what it would run."""
        file = projectfile.load(Path(project.repository))
        return file, not file.digest or file.digest == project.agreed_hash

    async def agree(self, project: ProjectRecord, digest: str, *, actor: str) -> None:
        """Keep that the user agrees to the commands with *digest*; raise ``SetupNotAgreed`` if they changed since."""
        file, _ = self.setup_of(project)
        if digest != file.digest:
            raise CcorchError(
                ErrorCode.SETUP_NOT_AGREED,
                f"the set-up steps of {project.name} have changed since they were shown",
                f"Read them again: ccorchctl project agree {project.name}",
            )

        def work(store: Store) -> Event | None:
            store.set_agreed(project.id, digest)
            return store.add_event(
                Event(
                    "project.agreed",
                    f"agreed to the set-up steps: {'; '.join(file.asks) or 'none'}",
                    project_id=project.id,
                    project=project.name,
                    actor=actor,
                    priority=5,
                )
            )

        event = await self.storage.run(work)
        project.agreed_hash = digest
        if event:
            self.history.publish(event)
        self.projects_changed.publish(None)

    async def unregister(self, project: ProjectRecord, *, actor: str) -> None:
        """Forget a project without instances; its repository is not touched. Raises ``ProjectInUse``."""
        names = [record.name for record in self.instances.records.values() if record.project_id == project.id]
        if names:
            raise CcorchError(
                ErrorCode.PROJECT_IN_USE,
                f"the project {project.name} has instances: {', '.join(sorted(names))}",
                "Remove them first: ccorchctl instance remove NAME",
            )

        def work(store: Store) -> Event | None:
            event = store.add_event(
                Event(
                    "project.removed", "forgotten", project_id=project.id, project=project.name, actor=actor, priority=5
                )
            )
            store.remove_project(project.id)
            return event

        event = await self.storage.run(work)
        self.projects.pop(project.id, None)
        if event:
            self.history.publish(event)
        self.projects_changed.publish(None)

    def instance(self, address: str) -> InstanceRecord:
        """Return the instance at ``project/name``; raise ``NoSuchProject``, ``NoSuchInstance`` or ``InvalidName``."""
        wanted = Address.parse(address)
        for record in self.instances.records.values():
            if record.address == wanted:
                return record
        self.project(wanted.project)
        others = sorted(r.name for r in self.instances.records.values() if r.project == wanted.project)
        raise CcorchError(
            ErrorCode.NO_SUCH_INSTANCE,
            f"there is no instance {address!r}",
            f"In {wanted.project} there are: {', '.join(others)}."
            if others
            else f"{wanted.project} has no instances yet.",
        )


def _name_from(folder: str) -> str:
    """Make a project's name from a folder's: ``My_Project.git`` becomes ``my-project``."""
    words = "".join(char if char.isascii() and char.isalnum() else "-" for char in folder.removesuffix(".git").lower())
    return "-".join(part for part in words.split("-") if part)[:40].strip("-") or "project"

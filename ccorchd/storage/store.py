# SPDX-License-Identifier: LGPL-2.1-or-later
"""What can be read and written inside one transaction. A Store is handed to the functions given to ``Storage.run``."""

from __future__ import annotations

import dataclasses
import difflib
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

from peewee import Database

from ccorchd.contract import ErrorCode, Reason, State
from ccorchd.errors import CcorchError
from ccorchd.model import Address, Event, InstanceRecord, Limits, ProjectRecord
from ccorchd.storage import models
from ccorchd.storage.models import Instance, Project

AUDIT: Final = "audit"
"""Events of this kind, or of a kind that goes on after a dot (``audit.CreateInstance``), are the audit trail."""

_FIXED: Final = frozenset({"id", "project_id", "project", "name", "repository", "created"})
"""What an instance keeps from its creation to its removal."""

_CHANGEABLE: Final = frozenset(field.name for field in dataclasses.fields(InstanceRecord)) - _FIXED
_LIMITS: Final = frozenset(field.name for field in dataclasses.fields(Limits))


class Store:
    """Records in, records out. All methods must be called in the database thread, inside a transaction.

    Only one transaction runs at a time and it holds SQLite's write lock from its start, so looking before writing is
    safe.
    """

    def __init__(self, database: Database) -> None:
        # Any: what types peewee tells differs between its versions.
        self._database: Any = database

    def _rows(self, query: Any) -> list[dict[str, Any]]:
        return list(query.dicts().execute(self._database))

    # Projects

    def add_project(self, name: str, repository: str) -> ProjectRecord:
        """Raise ``ProjectExists`` if the name or the repository is registered."""
        if self._projects(Project.name == name):
            raise CcorchError(
                ErrorCode.PROJECT_EXISTS, f"there is a project {name} already", "Give this one another name."
            )
        if found := self.project_by_repository(repository):
            raise CcorchError(ErrorCode.PROJECT_EXISTS, f"{repository} is registered already, as project {found.name}")
        created = time.time()
        values = {"name": name, "repository": repository, "created": created, "agreed_hash": ""}
        identity = Project.insert(values).execute(self._database)
        return ProjectRecord(id=identity, name=name, repository=repository, created=created)

    def project(self, name: str) -> ProjectRecord:
        """Raise ``NoSuchProject`` with the nearest name as hint."""
        if found := self._projects(Project.name == name):
            return found[0]
        known = [project.name for project in self.projects()]
        raise CcorchError(ErrorCode.NO_SUCH_PROJECT, f"there is no project {name}", _nearest(name, known, "projects"))

    def project_by_repository(self, repository: str) -> ProjectRecord | None:
        """Return the project of the main checkout *repository* (an absolute path)."""
        found = self._projects(Project.repository == repository)
        return found[0] if found else None

    def projects(self) -> list[ProjectRecord]:
        """Return all, by name."""
        return self._projects()

    def _projects(self, *conditions: Any) -> list[ProjectRecord]:
        query = Project.select().order_by(Project.name)
        return [ProjectRecord(**row) for row in self._rows(query.where(*conditions) if conditions else query)]

    def remove_project(self, project_id: int) -> None:
        """Forget a project; its events stay. Raise ``ProjectInUse`` while it has instances, ``NoSuchProject``."""
        [name] = [project.name for project in self._projects(Project.id == project_id)] or [""]
        if not name:
            raise CcorchError(ErrorCode.NO_SUCH_PROJECT, f"there is no project with the id {project_id}")
        if instances := self.instances(name):
            raise CcorchError(
                ErrorCode.PROJECT_IN_USE,
                f"project {name} has {len(instances)} instance{'s' if len(instances) > 1 else ''}: "
                + ", ".join(instance.name for instance in instances),
                "Remove them first.",
            )
        Project.delete().where(Project.id == project_id).execute(self._database)

    def set_agreed(self, project_id: int, digest: str) -> None:
        """Note that the user agreed to the set-up steps with this digest. Raise ``NoSuchProject``."""
        if not Project.update(agreed_hash=digest).where(Project.id == project_id).execute(self._database):
            raise CcorchError(ErrorCode.NO_SUCH_PROJECT, f"there is no project with the id {project_id}")

    # Instances

    def add_instance(
        self,
        *,
        project_id: int,
        name: str,
        agent: str,
        branch: str,
        base: str,
        base_commit: str,
        worktree: str,
        session_id: str = "",
        port: int = 0,
        prompt: str = "",
        limits: Limits | None = None,
        environment: dict[str, str] | None = None,
        options: dict[str, str] | None = None,
        wanted: bool = False,
        state: State = State.STOPPED,
        reason: Reason = Reason.NONE,
        reason_text: str = "",
        since: float | None = None,
        created: float | None = None,
        restarts: int = 0,
        pid: int = 0,
        boot_id: str = "",
        started: bool = False,
        doing: str = "",
    ) -> InstanceRecord:
        """Raise ``NoSuchProject``, ``InstanceExists``, or ``InvalidArgument`` if the port is leased to another."""
        [project] = [found.name for found in self._projects(Project.id == project_id)] or [""]
        if not project:
            raise CcorchError(ErrorCode.NO_SUCH_PROJECT, f"there is no project with the id {project_id}")
        if self._instances((Instance.project_id == project_id) & (Instance.name == name)):
            raise CcorchError(
                ErrorCode.INSTANCE_EXISTS, f"there is an instance {project}/{name} already", "Choose another name."
            )
        self._check_port(port)
        now = time.time()
        values: dict[str, object] = {
            "project_id": project_id,
            "name": name,
            "agent": agent,
            "branch": branch,
            "base": base,
            "base_commit": base_commit,
            "worktree": worktree,
            "session_id": session_id,
            "port": port,
            "prompt": prompt,
            "limits": dataclasses.asdict(limits or Limits()),
            "environment": environment or {},
            "options": options or {},
            "wanted": wanted,
            "state": str(state),
            "reason": str(reason),
            "reason_text": reason_text,
            "since": now if since is None else since,
            "created": now if created is None else created,
            "restarts": restarts,
            "pid": pid,
            "boot_id": boot_id,
            "started": started,
            "doing": doing,
        }
        return self.instance_by_id(Instance.insert(values).execute(self._database))

    def instance(self, address: Address) -> InstanceRecord:
        """Raise ``NoSuchInstance`` with the nearest addresses as hint."""
        if found := self._instances((Project.name == address.project) & (Instance.name == address.name)):
            return found[0]
        known = [str(instance.address) for instance in self.instances()]
        raise CcorchError(
            ErrorCode.NO_SUCH_INSTANCE, f"there is no instance {address}", _nearest(str(address), known, "instances")
        )

    def instance_by_id(self, instance_id: int) -> InstanceRecord:
        """Raise ``NoSuchInstance``."""
        if found := self._instances(Instance.id == instance_id):
            return found[0]
        raise _no_instance(instance_id)

    def instances(self, project: str | None = None) -> list[InstanceRecord]:
        """Return those of one project or all, by project and name."""
        return self._instances(*([] if project is None else [Project.name == project]))

    def _instances(self, *conditions: Any) -> list[InstanceRecord]:
        query = (
            Instance.select(Instance, Project.name.alias("project"), Project.repository)
            .join(Project, on=(Instance.project_id == Project.id))
            .order_by(Project.name, Instance.name)
        )
        rows = self._rows(query.where(*conditions) if conditions else query)
        for row in rows:
            row["limits"] = Limits(**{key: value for key, value in row["limits"].items() if key in _LIMITS})
            row["state"] = State(row["state"])
            row["reason"] = Reason(row["reason"])
        return [InstanceRecord(**row) for row in rows]

    def update_instance(self, instance_id: int, **changes: Any) -> InstanceRecord:
        """Change fields of :class:`InstanceRecord` by name and return the record as it is now.

        Raise ``NoSuchInstance``, and TypeError for a field that never changes (names, ids, the time of creation).
        """
        if wrong := changes.keys() - _CHANGEABLE:
            raise TypeError(f"an instance cannot change its {', '.join(sorted(wrong))}")
        if isinstance(limits := changes.get("limits"), Limits):
            changes["limits"] = dataclasses.asdict(limits)
        # Through the enumeration and back: a word that is no state must not reach the table, where it could not be
        # read.
        if "state" in changes:
            changes["state"] = str(State(changes["state"]))
        if "reason" in changes:
            changes["reason"] = str(Reason(changes["reason"]))
        if "port" in changes:
            self._check_port(changes["port"], instance_id)
        if changes and not Instance.update(changes).where(Instance.id == instance_id).execute(self._database):
            raise _no_instance(instance_id)
        return self.instance_by_id(instance_id)

    def remove_instance(self, instance_id: int) -> None:
        """Forget an instance; its events stay, under its name. Raise ``NoSuchInstance``."""
        if not Instance.delete().where(Instance.id == instance_id).execute(self._database):
            raise _no_instance(instance_id)

    def leased_ports(self) -> set[int]:
        """Return the ports of all instances, running or not."""
        return {row["port"] for row in self._rows(Instance.select(Instance.port).where(Instance.port > 0))}

    def _check_port(self, port: int, instance_id: int = 0) -> None:
        if port and (holders := self._instances((Instance.port == port) & (Instance.id != instance_id))):
            raise CcorchError(ErrorCode.INVALID_ARGUMENT, f"port {port} is leased to {holders[0].address}")

    # Events

    def add_event(self, event: Event) -> Event | None:
        """Append a row and return it with its id; return None if one with that uid is there, so it counts once.

        Names that are empty are filled in from the ids, a time of 0 with now. An id whose project or instance is gone
        (a late report) is dropped; the names stay.
        """
        if event.uid is not None and self._events(models.Event.uid == event.uid, limit=1):
            return None
        project, instance = event.project, event.instance
        project_id, instance_id = event.project_id, event.instance_id
        if instance_id is not None:
            if found := self._instances(Instance.id == instance_id):
                instance, project, project_id = found[0].name, found[0].project, found[0].project_id
            else:
                instance_id = None
        if project_id is not None:
            if owners := self._projects(Project.id == project_id):
                project = owners[0].name
            else:
                project_id = None
        event = dataclasses.replace(
            event,
            project=project,
            instance=instance,
            project_id=project_id,
            instance_id=instance_id,
            time=event.time or time.time(),
        )
        values = {field.name: getattr(event, field.name) for field in dataclasses.fields(event) if field.name != "id"}
        return dataclasses.replace(event, id=models.Event.insert(values).execute(self._database))

    def events(
        self,
        *,
        instance_id: int | None = None,
        project_id: int | None = None,
        address: Address | None = None,
        kinds: Iterable[str] | None = None,
        after: int = 0,
        before: int | None = None,
        limit: int = 1000,
        newest_first: bool = False,
        audit: bool | None = None,
    ) -> list[Event]:
        """Return at most *limit* events that meet all conditions, by id.

        *after* and *before* are ids, not included. *address* finds also what is told of removed instances of that name.
        *audit* True gives the audit trail alone, False all but it.
        """
        row = models.Event
        conditions: list[Any] = []
        if instance_id is not None:
            conditions.append(row.instance_id == instance_id)
        if project_id is not None:
            conditions.append(row.project_id == project_id)
        if address is not None:
            conditions += [row.project == address.project, row.instance == address.name]
        if kinds is not None:
            conditions.append(row.kind.in_(list(kinds)))
        if audit is not None:
            # "/" follows "." in ASCII: all kinds that start with "audit.", in a form that an index can serve.
            trail = (row.kind == AUDIT) | ((row.kind > f"{AUDIT}.") & (row.kind < f"{AUDIT}/"))
            conditions.append(trail if audit else ~trail)
        if after:
            conditions.append(row.id > after)
        if before is not None:
            conditions.append(row.id < before)
        return self._events(*conditions, limit=limit, newest_first=newest_first)

    def _events(self, *conditions: Any, limit: int, newest_first: bool = False) -> list[Event]:
        row = models.Event
        query = row.select().order_by(row.id.desc() if newest_first else row.id).limit(max(limit, 0))
        return [Event(**found) for found in self._rows(query.where(*conditions) if conditions else query)]


def _no_instance(instance_id: int) -> CcorchError:
    return CcorchError(ErrorCode.NO_SUCH_INSTANCE, f"there is no instance with the id {instance_id}")


def _nearest(wanted: str, known: Sequence[str], what: str) -> str:
    if not known:
        return f"There are no {what} yet."
    if near := difflib.get_close_matches(wanted, known, n=3, cutoff=0.6):
        return f"Did you mean {' or '.join(near)}?"
    shown = ", ".join(known[:8]) + (f" and {len(known) - 8} more" if len(known) > 8 else "")
    return f"There are {what} {shown}." if len(known) > 1 else f"The only one is {shown}."

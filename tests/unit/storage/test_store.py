# SPDX-License-Identifier: LGPL-2.1-or-later
"""Records in, records out: projects, instances, events."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from ccorchd.contract import ErrorCode, Reason, State
from ccorchd.errors import CcorchError
from ccorchd.model import Address, Event, InstanceRecord, Limits
from ccorchd.storage import Storage, Store

T = TypeVar("T")


def made(store: Store, name: str = "a", project_id: int = 1, **fields: Any) -> InstanceRecord:
    given: dict[str, Any] = {
        "agent": "demo",
        "branch": f"ccorch/{name}",
        "base": "main",
        "base_commit": "c" * 40,
        "worktree": f"/w/{name}",
    }
    return store.add_instance(project_id=project_id, name=name, **(given | fields))


async def refused(storage: Storage, work: Callable[[Store], object]) -> CcorchError:
    with pytest.raises(CcorchError) as caught:
        await storage.run(work)
    return caught.value


async def test_projects(storage: Storage) -> None:
    before = time.time()
    one = await storage.run(lambda store: store.add_project("one", "/r/one"))
    two = await storage.run(lambda store: store.add_project("alpha", "/r/two"))
    assert before <= one.created <= time.time()
    assert await storage.run(lambda store: store.projects()) == [two, one]
    assert await storage.run(lambda store: store.project("one")) == one
    assert await storage.run(lambda store: store.project_by_repository("/r/two")) == two
    assert await storage.run(lambda store: store.project_by_repository("/r/three")) is None
    await storage.run(lambda store: store.set_agreed(one.id, "abc"))
    assert (await storage.run(lambda store: store.project("one"))).agreed_hash == "abc"


async def test_projects_are_refused_in_words(storage: Storage) -> None:
    await storage.run(lambda store: store.add_project("web-shop", "/r"))
    error = await refused(storage, lambda store: store.add_project("web-shop", "/other"))
    assert (error.code, error.message) == (ErrorCode.PROJECT_EXISTS, "there is a project web-shop already")
    error = await refused(storage, lambda store: store.add_project("other", "/r"))
    assert (error.code, error.message) == (
        ErrorCode.PROJECT_EXISTS,
        "/r is registered already, as project web-shop",
    )
    error = await refused(storage, lambda store: store.project("webshop"))
    assert (error.code, error.hint) == (ErrorCode.NO_SUCH_PROJECT, "Did you mean web-shop?")
    error = await refused(storage, lambda store: store.project("x"))
    assert error.hint == "The only one is web-shop."
    for work in (
        lambda store: store.set_agreed(9, "x"),
        lambda store: store.remove_project(9),
        lambda s: made(s, project_id=9),
    ):
        assert (await refused(storage, work)).code is ErrorCode.NO_SUCH_PROJECT


async def test_first_project_hint(storage: Storage) -> None:
    assert (await refused(storage, lambda store: store.project("x"))).hint == "There are no projects yet."


async def test_a_project_with_instances_stays(storage: Storage) -> None:
    await storage.run(lambda store: (store.add_project("p", "/r"), made(store, "a"), made(store, "b")))
    error = await refused(storage, lambda store: store.remove_project(1))
    assert (error.code, error.message) == (ErrorCode.PROJECT_IN_USE, "project p has 2 instances: a, b")

    def remove(store: Store) -> None:
        store.remove_instance(1)
        store.remove_instance(2)
        store.remove_project(1)

    await storage.run(remove)
    assert await storage.run(lambda store: store.projects()) == []


async def test_ids_are_never_used_again(storage: Storage) -> None:
    def work(store: Store) -> tuple[int, int]:
        project = store.add_project("p", "/r")
        store.remove_instance(made(store, project_id=project.id).id)
        instance = made(store, project_id=project.id)
        store.remove_instance(instance.id)
        store.remove_project(project.id)
        return store.add_project("p", "/r").id, instance.id

    assert await storage.run(work) == (2, 2)


async def test_every_field_of_an_instance_comes_back(storage: Storage, path: Path) -> None:
    project = await storage.run(lambda store: store.add_project("p", "/r"))
    wanted = InstanceRecord(
        id=1,
        project_id=project.id,
        project="p",
        name="a-1",
        agent="claude",
        session_id="0" * 36,
        branch="ccorch/ä",
        base="main",
        base_commit="d" * 40,
        worktree="/w/ä b",
        repository="/r",
        port=42007,
        prompt='Say "hi"\nand 😀',
        limits=Limits(memory_high=2**33, memory_max=2**34, cpu_quota_percent=150.5, cpu_weight=7, tasks_max=None),
        environment={"PATH": "/bin", "LANG": "C.UTF-8"},
        wanted=True,
        state=State.WAITING,
        reason=Reason.PERMISSION,
        reason_text="Bash rm -rf build",
        since=1.25,
        created=0.5,
        restarts=3,
        pid=2**22,
        boot_id="b" * 36,
        started=True,
        doing="tests",
        options={"command": "sh -c 'x'"},
    )
    fields = {field.name: getattr(wanted, field.name) for field in dataclasses.fields(wanted)}
    for derived in ("id", "project", "repository"):
        del fields[derived]
    assert await storage.run(lambda store: store.add_instance(**fields)) == wanted
    assert await storage.run(lambda store: store.instance(Address("p", "a-1"))) == wanted
    await storage.close()
    again = await Storage.open(path)
    try:
        assert await again.run(lambda store: store.instances()) == [wanted]
    finally:
        await again.close()


async def test_instances_are_found_and_sorted(storage: Storage) -> None:
    def work(store: Store) -> None:
        store.add_project("p", "/r")
        store.add_project("a", "/s")
        made(store, "z")
        made(store, "b")
        made(store, "b", 2)

    await storage.run(work)
    assert [str(each.address) for each in await storage.run(lambda store: store.instances())] == ["a/b", "p/b", "p/z"]
    assert [each.id for each in await storage.run(lambda store: store.instances("p"))] == [2, 1]
    assert await storage.run(lambda store: store.instances("nothing")) == []
    assert (await storage.run(lambda store: store.instance(Address("a", "b")))).id == 3
    error = await refused(storage, lambda store: made(store, "z"))
    assert (error.code, error.message) == (ErrorCode.INSTANCE_EXISTS, "there is an instance p/z already")
    error = await refused(storage, lambda store: store.instance(Address("p", "zz")))
    assert error.code is ErrorCode.NO_SUCH_INSTANCE
    assert error.hint.startswith("Did you mean p/z")
    error = await refused(storage, lambda store: store.instance(Address("quite", "different")))
    assert error.hint == "There are instances a/b, p/b, p/z."


async def test_update_instance(storage: Storage) -> None:
    await storage.run(lambda store: (store.add_project("p", "/r"), made(store)))
    changed = await storage.run(
        lambda store: store.update_instance(
            1, state=State.FAILED, reason=Reason.OUT_OF_MEMORY, limits=Limits(tasks_max=20), environment={"A": "b"}
        )
    )
    assert (changed.state, changed.reason) == (State.FAILED, Reason.OUT_OF_MEMORY)
    assert (changed.limits, changed.environment) == (Limits(tasks_max=20), {"A": "b"})
    assert await storage.run(lambda store: store.update_instance(1)) == changed
    assert await storage.run(lambda store: store.instance_by_id(1)) == changed
    for field in ("id", "project_id", "project", "name", "repository", "created", "nonsense"):
        with pytest.raises(TypeError, match=field):
            await storage.run(lambda store, field=field: store.update_instance(1, **{field: "x"}))  # type: ignore[misc]
    with pytest.raises(ValueError, match="flying"):
        await storage.run(lambda store: store.update_instance(1, state="flying"))
    for work in (
        lambda store: store.update_instance(9, pid=1),
        lambda store: store.update_instance(9),
        lambda store: store.remove_instance(9),
        lambda store: store.instance_by_id(9),
    ):
        assert (await refused(storage, work)).code is ErrorCode.NO_SUCH_INSTANCE


async def test_a_port_is_leased_once(storage: Storage) -> None:
    def work(store: Store) -> set[int]:
        store.add_project("p", "/r")
        made(store, "a", port=42000)
        made(store, "b", port=42001)
        made(store, "c")
        made(store, "d")
        return store.leased_ports()

    assert await storage.run(work) == {42000, 42001}
    error = await refused(storage, lambda store: made(store, "e", port=42001))
    assert (error.code, error.message) == (ErrorCode.INVALID_ARGUMENT, "port 42001 is leased to p/b")
    assert (
        await refused(storage, lambda store: store.update_instance(3, port=42000))
    ).code is ErrorCode.INVALID_ARGUMENT
    assert (await storage.run(lambda store: store.update_instance(1, port=42000))).port == 42000
    await storage.run(lambda store: store.remove_instance(2))
    assert await storage.run(lambda store: store.leased_ports()) == {42000}


async def test_limits_of_another_version_are_read(storage: Storage) -> None:
    def work(store: Store) -> Limits:
        store.add_project("p", "/r")
        made(store)
        store._database.execute_sql("""UPDATE instance SET limits = '{"tasks_max": 5, "swap_max": 1}'""")
        return store.instance_by_id(1).limits

    assert await storage.run(work) == Limits(tasks_max=5)


async def test_an_event_counts_once(storage: Storage) -> None:
    await storage.run(lambda store: (store.add_project("p", "/r"), made(store)))
    event = Event("tool", "Bash: ls", instance_id=1, uid="u", data={"a": [1, None, "x"]}, priority=5, actor="hook")
    before = time.time()
    added = await storage.run(lambda store: store.add_event(event))
    assert added is not None
    assert (added.id, added.project_id, added.project, added.instance) == (1, 1, "p", "a")
    assert before <= added.time <= time.time()
    assert await storage.run(lambda store: store.add_event(event)) is None
    assert await storage.run(lambda store: store.events()) == [added]
    # Without a uid nothing is known to be the same.
    for _ in range(2):
        assert await storage.run(lambda store: store.add_event(dataclasses.replace(event, uid=None))) is not None
    assert len(await storage.run(lambda store: store.events())) == 3


async def test_history_outlives_what_it_tells_of(storage: Storage) -> None:
    def work(store: Store) -> None:
        store.add_project("p", "/r")
        made(store)
        store.add_event(Event("created", "x", instance_id=1))
        store.add_event(Event("registered", "x", project_id=1))
        store.remove_instance(1)
        store.remove_project(1)
        # A late report of an instance that is gone: kept, under the names it came with.
        store.add_event(Event("late", "x", instance_id=1, project_id=1, project="p", instance="a"))

    await storage.run(work)
    events = await storage.run(lambda store: store.events())
    assert [(e.kind, e.project, e.instance, e.project_id, e.instance_id) for e in events] == [
        ("created", "p", "a", None, None),
        ("registered", "p", "", None, None),
        ("late", "p", "a", None, None),
    ]
    found = await storage.run(lambda store: store.events(address=Address("p", "a")))
    assert [event.kind for event in found] == ["created", "late"]


async def test_events_are_filtered(storage: Storage) -> None:
    def work(store: Store) -> None:
        store.add_project("p", "/r")
        store.add_project("q", "/s")
        made(store, "a")
        made(store, "b")
        made(store, "a", 2)
        for number in range(12):
            store.add_event(Event(f"k{number % 2}", str(number), instance_id=1 + number % 3))
        for kind in ("audit", "audit.Create", "auditor", "audit-x", "audi"):
            store.add_event(Event(kind, kind, project_id=2))

    await storage.run(work)

    async def found(**wanted: Any) -> list[str]:
        return [event.message for event in await storage.run(lambda store: store.events(**wanted))]

    assert len(await found()) == 17
    assert await found(limit=2) == ["0", "1"]
    assert await found(limit=0) == []
    assert await found(limit=2, newest_first=True) == ["audi", "audit-x"]
    assert await found(instance_id=1) == ["0", "3", "6", "9"]
    assert await found(instance_id=1, kinds=["k1"]) == ["3", "9"]
    assert await found(instance_id=1, after=4, before=10) == ["6"]
    assert await found(instance_id=1, newest_first=True, before=10) == ["6", "3", "0"]
    assert await found(project_id=1, kinds=["k0", "k1"], limit=3) == ["0", "1", "3"]
    assert await found(address=Address("q", "a")) == ["2", "5", "8", "11"]
    assert await found(kinds=[]) == []
    assert await found(kinds=["nothing"]) == []
    assert await found(audit=True) == ["audit", "audit.Create"]
    assert await found(audit=True, project_id=1) == []


async def test_any_text_an_agent_says_can_be_kept(storage: Storage) -> None:
    event = Event(
        "message", "lone \ud800, pair \ud83d\ude00, nul \0", data={"text": "\ud800\0", "big": 2**80}, uid="\udfff"
    )
    added = await storage.run(lambda store: store.add_event(event))
    assert added is not None
    assert await storage.run(lambda store: store.add_event(event)) is None
    [kept] = await storage.run(lambda store: store.events())
    assert kept.message == "lone \ufffd, pair 😀, nul \ufffd"
    assert kept.data == {"text": "\ud800\0", "big": 2**80}


async def test_a_path_is_kept_as_it_is_or_not_at_all(storage: Storage) -> None:
    error = await refused(storage, lambda store: store.add_project("p", "/r/\udcff"))
    assert error.code is ErrorCode.INVALID_ARGUMENT
    assert await storage.run(lambda store: store.projects()) == []

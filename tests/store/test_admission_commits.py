"""A request is committed as a whole or not at all, and only if the rows are still what the caller saw."""

import asyncio

import msgspec
import pytest
from sqlalchemy import Engine, select

from common.errors import Conflict
from common.ids import Id
from controller.kinds import admission
from controller.kinds.admission import Patch
from controller.store import tables
from controller.store.store import Store
from tests.store.desk import Desk


async def test_a_create_commits_resource_operation_event_and_queue_row_together(desk: Desk, engine: Engine) -> None:
    row = await desk.create("project", "", "shop")
    with engine.connect() as connection:
        made = select(tables.resource.c.name).where(tables.resource.c.kind == "project")
        assert connection.execute(made).scalar_one() == "shop"
        assert connection.execute(select(tables.operation.c.resource)).scalar_one() == row.id
        assert connection.execute(select(tables.event.c.action)).scalar_one() == "project.create"
        assert connection.execute(select(tables.queue.c.pokes).where(tables.queue.c.resource == row.id)).one() == (1,)


async def test_a_name_is_given_once_in_its_project(desk: Desk) -> None:
    await desk.project("shop")
    await desk.project("lab")
    both = [desk.admit_create("network", "shop", "back"), desk.admit_create("network", "shop", "back")]
    await desk.store.admit(both[0])
    with pytest.raises(Conflict, match="there is a network back already"):
        await desk.store.admit(both[1])
    await desk.create("network", "lab", "back")


async def test_of_two_creates_of_one_name_at_once_one_wins(desk: Desk) -> None:
    await desk.project()
    asked = [desk.admit_create("network", "shop", "back") for _ in range(8)]
    answers = await asyncio.gather(*(desk.store.admit(one) for one in asked), return_exceptions=True)
    assert sum(not isinstance(one, BaseException) for one in answers) == 1
    assert all(isinstance(one, Conflict) for one in answers if isinstance(one, BaseException))
    assert len(list(desk.store.seen.of_kind("network"))) == 1


async def test_nothing_is_kept_of_a_refused_create(desk: Desk, engine: Engine) -> None:
    await desk.project()
    first, second = desk.admit_create("token", "shop", "ci"), desk.admit_create("token", "shop", "ci")
    await desk.store.admit(first)
    with pytest.raises(Conflict):
        await desk.store.admit(second)
    with engine.connect() as connection:
        assert len(connection.execute(select(tables.operation)).all()) == 2
        assert len(connection.execute(select(tables.token)).all()) == 1
        assert len(connection.execute(select(tables.event)).all()) == 2


async def test_a_change_of_what_changed_meanwhile_is_refused(desk: Desk) -> None:
    row = await desk.create("project", "", "shop")
    mine = admission.change(desk.context, row, Patch(spec={"description": "mine"}))
    await desk.change(row, description="theirs")
    with pytest.raises(Conflict, match="changed meanwhile"):
        await desk.store.admit(mine)
    assert desk.now(row).spec.description == "theirs"


async def test_of_changes_at_once_exactly_one_is_taken(desk: Desk) -> None:
    row = await desk.create("project", "", "shop")
    asked = [admission.change(desk.context, row, Patch(spec={"description": str(n)})) for n in range(10)]
    answers = await asyncio.gather(*(desk.store.admit(one) for one in asked), return_exceptions=True)
    assert sum(not isinstance(one, BaseException) for one in answers) == 1
    assert desk.now(row).generation == 2


async def test_a_create_that_refers_to_what_was_deleted_meanwhile_is_refused(desk: Desk) -> None:
    await desk.project()
    key = "ssh-ed25519 AAAA me"
    for kind, project, name, spec in (
        ("size", "", "small", {"vcpus": 1, "memory_mib": 512, "disk_gib": 10}),
        ("image", "shop", "tiny", {}),
        ("network", "shop", "default", {}),
        ("keypair", "shop", "me", {"public_key": key}),
    ):
        await desk.create(kind, project, name, **spec)
    late = desk.admit_create("vm", "shop", "web", image="tiny", size="small", keypairs=["me"])
    found = desk.store.seen.named("keypair", "shop", "me")
    assert found is not None
    await desk.delete(found)
    with pytest.raises(Conflict, match=f"{found.id} was deleted meanwhile"):
        await desk.store.admit(late)


async def test_a_create_in_a_project_that_was_deleted_meanwhile_is_refused(desk: Desk) -> None:
    project = await desk.create("project", "", "shop")
    late = desk.admit_create("network", "shop", "back")
    await desk.delete(project)
    with pytest.raises(Conflict, match="project shop"):
        await desk.store.admit(late)


async def test_a_delete_closes_what_it_overtakes(desk: Desk) -> None:
    row = await desk.create("project", "", "shop")
    (created,) = desk.store.seen.open_operations(row.id)
    await desk.delete(row)
    overtaken = desk.store.seen.operation(created.id)
    assert overtaken is not None
    assert (overtaken.state, overtaken.finished_at) == ("cancelled", desk.clock.now)
    assert [one.verb for one in desk.store.seen.open_operations(row.id)] == ["delete"]


async def test_deleting_twice_keeps_the_first_moment(desk: Desk) -> None:
    row = await desk.create("project", "", "shop")
    first = await desk.delete(row)
    desk.clock.now += 100
    second = await desk.delete(row)
    assert (second.deleted_at, second.generation) == (first.deleted_at, first.generation)
    assert len(desk.store.seen.open_operations(row.id)) == 2


async def test_revisions_only_rise(desk: Desk) -> None:
    rows = [await desk.create("project", "", name) for name in ("a", "b", "c")]
    revisions = [row.revision for row in rows]
    assert revisions == sorted(set(revisions))
    changed = await desk.change(rows[0], description="new")
    assert changed.revision > revisions[-1]


async def test_an_update_of_what_is_gone_is_refused(store: Store, desk: Desk) -> None:
    row = await desk.create("project", "", "shop")
    elsewhere = msgspec.structs.replace(row, id=Id("prj-000000000000"))
    with pytest.raises(Conflict, match="changed meanwhile"):
        await store.admit(admission.change(desk.context, elsewhere, Patch(spec={"description": "x"})))

"""A host that asks to be let go, at a whole controller: not while anything should be on it; then its link is cut."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fleet_bench import World
from link_bench import eventually

from agent import join
from common.errors import Conflict, Denied


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    async with world.up():
        yield world


async def test_a_host_that_something_should_be_on_is_kept(world: World) -> None:
    identity = await world.joined("h1")
    disk = await world.want(identity.host, 1)

    with pytest.raises(Conflict, match=f"host h1 should have {disk}") as caught:
        await join.leave(identity)

    assert "skerry host drain h1" in caught.value.fix
    enrolment = world.store.seen.enrolment(identity.host)
    assert enrolment is not None
    assert enrolment.certificate_serial == identity.serial


async def test_a_host_that_leaves_is_cut_off_and_may_come_back_with_a_new_token(world: World) -> None:
    identity = await world.joined("h1")
    async with world.agent(identity):
        await eventually(lambda: world.connected(identity))

        await join.leave(identity)

        await eventually(lambda: not world.connected(identity))
    await eventually(
        lambda: (row := world.store.seen.get(identity.host)) and "skerry host token h1" in row.status.message
    )
    with pytest.raises(Denied, match="is revoked"):
        await join.leave(identity)
    assert [event.name for event in await world.events("host.left", identity.host)] == ["h1"]
    again = await world.joined_anew("h1")
    async with world.agent(again):
        await eventually(lambda: world.connected(again))

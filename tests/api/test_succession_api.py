"""The authority's succession as operators ask for it: who may, what they see, and what is written down."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from api_world import World, world

from common.errors import Conflict
from common.ids import HostId
from controller.cli import authority
from controller.pki.succession import Behind, Standing, Succession


class Successor:
    """One host is behind, whatever happens."""

    def __init__(self) -> None:
        self.succession = Succession(current="a" * 64, since=1.0)
        self.host = HostId("host-000000000000")  # type: ignore[arg-type]

    def standing(self) -> Standing:
        behind = (Behind(host=self.host, why="is not connected"),) if self.succession.next else ()
        return Standing(succession=self.succession, hosts=3, behind=behind, unready=())

    async def rotate(self, *, go_on: bool = False) -> Standing:
        if self.succession.next:
            raise Conflict("an authority is being followed by another one already")
        self.succession = Succession(phase="overlap", current="a" * 64, next="b" * 64, since=2.0)
        return self.standing()


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path, successor=Successor()) as made:
        await made.make("/v1/projects", "shop")
        await made.token("tenant", "shop", "admin")
        await made.token("reader", "system", "reader")
        yield made


async def test_an_operator_rotates_and_sees_who_is_behind(cloud: World) -> None:
    host = await cloud.make("/v1/hosts", "h1")
    tried = await cloud.call("POST", "/v1/ca/rotate?dry_run=true")
    assert (tried.status, tried.json["phase"]) == (200, "settled")
    done = await cloud.call("POST", "/v1/ca/rotate")
    assert (done.status, done.json["phase"], done.json["next"]) == (202, "overlap", "b" * 64)
    shown = await cloud.call("GET", "/v1/ca", as_="reader")
    assert shown.json["behind"] == [{"host": "host-000000000000", "why": "is not connected"}]
    assert shown.json["hosts"] == 3
    again = await cloud.call("POST", "/v1/ca/rotate")
    assert again.status == 409
    events = (await cloud.call("GET", "/v1/events?action=ca.*")).json["items"]
    assert [(one["action"], one["result"]) for one in events] == [("ca.rotate", "accepted"), ("ca.rotate", "conflict")]
    assert host


async def test_nobody_else_does(cloud: World) -> None:
    assert (await cloud.call("GET", "/v1/ca", as_="tenant")).status == 403
    assert (await cloud.call("POST", "/v1/ca/rotate", as_="tenant")).status == 403
    assert (await cloud.call("POST", "/v1/ca/rotate", as_="reader")).status == 403
    assert (await cloud.call("POST", "/v1/ca/rotate?go_on=perhaps")).status == 400
    assert (await cloud.call("GET", "/v1/ca")).json["phase"] == "settled"


def test_the_command_says_what_it_is_about(capsys: pytest.CaptureFixture[str]) -> None:
    assert sorted(authority.group().commands) == ["rotate", "status"]
    assert set(authority.PHASES) == {"settled", "sharing", "overlap", "switching"}

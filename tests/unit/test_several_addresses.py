"""An agent that knows several controllers dials one after the other, and never forgets the one that it joined."""

import ssl
from pathlib import Path
from unittest.mock import patch

import pytest

from agent.dial import Dialer
from agent.join import Identity
from common.ids import HostId, Id

JOINED, OTHER, THIRD = "https://a:8443", "https://b:8443", "https://c:8443"


@pytest.fixture
def dialer() -> Dialer:
    identity = Identity(
        url=JOINED,
        host=HostId(Id("host-1")),
        name="h1",
        ca_pem="",
        serial="1",
        renew_at=0.0,
        expires_at=1e12,
        path=Path("none"),
    )
    with patch.object(Identity, "context", lambda _self: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)):
        return Dialer(identity)


def test_with_one_controller_every_turn_comes_back_to_it(dialer: Dialer) -> None:
    dialer.turn()
    assert dialer.url == JOINED


def test_news_of_others_does_not_change_where_it_is(dialer: Dialer) -> None:
    dialer.know([OTHER, JOINED, THIRD])
    assert dialer.url == JOINED
    assert dialer.urls == (OTHER, JOINED, THIRD)


def test_turns_visit_every_controller(dialer: Dialer) -> None:
    dialer.know([OTHER, JOINED, THIRD])
    visited = []
    for _ in range(3):
        visited.append(dialer.url)
        dialer.turn()
    assert sorted(visited) == [JOINED, OTHER, THIRD]


def test_the_one_that_was_joined_is_kept_as_the_last_resort(dialer: Dialer) -> None:
    dialer.know([OTHER])
    assert dialer.urls == (OTHER, JOINED)


def test_a_controller_that_is_gone_is_left_for_another(dialer: Dialer) -> None:
    dialer.know([OTHER, THIRD])
    dialer.turn(dialer.urls.index(THIRD) - dialer.urls.index(dialer.url))
    dialer.know([OTHER])
    assert dialer.url in (OTHER, JOINED)

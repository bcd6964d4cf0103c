"""`skerry top`, `skerry vm metrics` and the last hour in `skerry vm show` against a controller: what is printed."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import click
import pytest
from api_world import Clock, Host, World
from structlog.testing import capture_logs
from test_history_api import tell

from common.kinds.vm import VM
from common.secret import Secret
from controller.cli import metrics, top
from controller.cli.client import Client
from controller.cli.failures import Failure
from controller.cli.settings import Connection


@asynccontextmanager
async def asking(cloud: World, form: str = "table") -> AsyncIterator[Client]:
    """Give a client as a command has it."""
    url = f"http://127.0.0.1:{cloud.client.port}"
    connection = Connection(url=url, token=Secret(cloud.tokens["root"]), project="a", ca="", context="")
    context = click.Context(click.Command("test"))
    context.meta["skerry.form"] = form
    with context, capture_logs():  # the controller's, which is in this process
        async with Client(connection) as client:
            yield client


@pytest.fixture
async def host(cloud: World) -> Host:
    """Give a host with two machines of which figures came."""
    host = await cloud.host("h1")
    busy, quiet = await cloud.vm("a", "busy", host), await cloud.vm("a", "quiet", host)
    cast(Clock, cloud.clock).now = 1_800_000_000.0
    tell(cloud, host, {quiet.id: 3, busy.id: 90}, times=8)
    return host


def wanted(*names: str, start: str = "-1h") -> metrics.Wanted:
    """Return what a command line asks for."""
    return metrics.Wanted(metrics=names, start=start, end="now", step=None, agg="avg")


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what was printed but for the log."""
    return "".join(line for line in capsys.readouterr().out.splitlines(keepends=True) if not line.startswith("level="))


async def test_top_shows_the_busiest_first(cloud: World, host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    async with asking(cloud) as client:
        await top._follow(client, "vms", {"of": "vms"}, 0.0)
    lines = printed(capsys).splitlines()
    assert lines[0].split() == ["NAME", "HOST", "VCPUS", "CPU", "MEMORY", "READ", "WRITE", "IN", "OUT", "AGE"]
    assert [line.split()[0] for line in lines[1:]] == ["busy", "quiet"]
    assert "90.0 %  107.0 MiB of 512.0 MiB" in lines[1]
    assert "200 B/s" in lines[1]
    async with asking(cloud) as client:
        await top._follow(client, "hosts", {"of": "hosts"}, 0.0)
    assert "h1    8        25.0 %  0.5   2.0 GiB of 16.0 GiB" in printed(capsys)


async def test_top_is_the_api_s_own_json_where_that_is_asked_for(
    cloud: World, host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    async with asking(cloud, "json") as client:
        await top._follow(client, "vms", {"of": "vms"}, 0.0)
    assert [one["name"] for one in json.loads(printed(capsys))["items"]] == ["busy", "quiet"]


async def test_a_named_metric_is_drawn_as_a_chart(cloud: World, host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    async with asking(cloud) as client:
        await metrics.show(client, "/v1/projects/a/vms/busy/metrics", wanted("cpu", start="-1m"))
    text = printed(capsys)
    assert "cpu of busy, avg: mean 90.0 %, highest 90.0 %" in text
    assert "90.0 % ┤" in text
    assert "45.0 % ┤" in text
    assert " 0.0 % ┤" in text
    assert "█" in text
    assert "└─" in text


async def test_all_metrics_are_a_line_each(cloud: World, host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    async with asking(cloud) as client:
        await metrics.show(client, "/v1/projects/a/vms/busy/metrics", wanted(start="-1m"))
    text = printed(capsys)
    assert "-1M TO NOW" in text
    memory = next(line for line in text.splitlines() if line.startswith("memory"))
    assert memory.split()[:3] == ["memory", "107.0", "MiB"]


async def test_where_nothing_is_known_the_way_out_is_said(cloud: World, host: Host) -> None:
    async with asking(cloud) as client:
        long_ago = metrics.Wanted(metrics=("cpu",), start="-3h", end="-2h", step=None, agg="avg")
        with pytest.raises(Failure, match="nothing is known of cpu of busy") as caught:
            await metrics.show(client, "/v1/projects/a/vms/busy/metrics", long_ago)
    assert "-7d" in caught.value.fix


async def test_the_last_hour_is_a_line_each_and_nothing_where_it_may_not_be_seen(
    cloud: World, host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    async with asking(cloud) as client:
        await metrics.print_last_hour(client, VM, "busy")
        text = printed(capsys)
        await metrics.print_last_hour(client, VM, "nobody")
    assert text.startswith("last hour\n")
    assert "cpu         " in text
    assert text.count("\n") == 7
    assert "90.0 %" in text
    assert printed(capsys) == ""

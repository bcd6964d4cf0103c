"""`skerry host drain` and `skerry host remove`: what is on a host, what becomes of it, and then the doing of it."""

import asyncio
import time
from collections.abc import Iterable

import click
import msgspec

from common.kinds import kind_named
from common.kinds.kind import AnyKind
from controller.cli.answers import Answer, Shown, shown
from controller.cli.client import Client
from controller.cli.failures import BLOCKED, TIMED_OUT, Failure
from controller.cli.kinds import change_spec
from controller.cli.render import print_data, print_table
from controller.cli.session import form
from controller.cli.waiting import line, settle

LOOK_AGAIN_S = 1.0
_OFF = frozenset({"stopped", "crashed", "blocked", "waiting", "deleting"})
"""States in which nothing of a machine runs, or is meant to."""


class Thing(Answer, frozen=True):
    """A machine on the host, or a disk that is no machine's own, and what becomes of it."""

    kind: str
    project: str
    name: str
    state: str
    becomes: str
    protected: bool = False

    @property
    def runs(self) -> bool:
        """Whether it is a machine that is on, as far as anybody knows."""
        return self.kind == "vm" and self.state not in _OFF


class Plan(Answer, frozen=True):
    """What `-o json` prints."""

    host: str
    things: tuple[Thing, ...]


async def drain(client: Client, kind: AnyKind, name: str, *, stop_vms: bool, dry_run: bool, wait_s: float) -> None:
    """Close a host to new machines, and have those on it stopped where that was consented to.

    Raises Failure where machines run on, or are not stopped in time.
    """
    host = await _host(client, kind, name)
    found = await _things(client, host)
    things = [_drained(thing, stop_vms=stop_vms) for thing in found if thing.kind == "vm"]
    _print(Plan(host=host.name, things=tuple(things)))
    _say(f"host {host.name}: takes no new machines" + (" (dry run: nothing is changed)" if dry_run else ""))
    if dry_run:
        return
    await change_spec(client, kind, name, {"schedulable": False})
    if stop_vms:
        vm = kind_named("vm")
        for one in things:
            if one.runs:
                await client.change("POST", client.path(vm, one.name, "stop", project=one.project))
    left = await _until_quiet(client, host, wait_s if stop_vms else 0.0)
    if not left:
        _say(f"host {host.name}: nothing runs on it; to have it back: skerry host set {host.name} --schedulable")
        return
    if stop_vms:
        raise Failure(
            f"{_count(left)} of host {host.name} not stopped yet: {_names(left)}",
            fix=f"it goes on; to wait: skerry host drain {host.name} --stop-vms --wait",
            code=TIMED_OUT,
        )
    raise Failure(
        f"host {host.name} takes no new machines; still on there: {_names(left)}",
        fix=f"have their owners stop them, or skerry host drain {host.name} --stop-vms",
        code=BLOCKED,
    )


async def remove(client: Client, kind: AnyKind, name: str, *, force: bool, dry_run: bool, wait_s: float) -> None:
    """Delete a host on which nothing is placed; with `force` one that is lost, and what was on it with it.

    Raises Failure where something is placed there, is protected, or where a host that answers is to be given up.
    """
    host = await _host(client, kind, name)
    things = [_lost(thing) for thing in await _things(client, host)]
    if things:
        _print(Plan(host=host.name, things=tuple(things)))
    if things and not force:
        raise Failure(
            f"host {host.name} is in use: {_names(things)}",
            fix=f"delete them first (skerry host drain {host.name} closes it to new ones); if the machine is lost for "
            f"good: skerry host remove {host.name} --force, which gives up what was on it",
            code=BLOCKED,
        )
    if things and (state := host.status.get("state")) in ("ready", "cordoned"):
        raise Failure(
            f"host {host.name} is {state}: it answers, and --force gives up only what is on a host that is lost",
            fix=f"skerry host drain {host.name} --stop-vms; delete what is on it; skerry host remove {host.name}",
            code=BLOCKED,
        )
    if protected := [thing for thing in things if thing.protected]:
        raise Failure(
            f"{_names(protected)}: protected against deletion",
            fix="skerry vm set NAME --no-protected, by who protects it; then again",
            code=BLOCKED,
        )
    if dry_run:
        _say(f"host {host.name}: would be removed (dry run: nothing is changed)")
        return
    for thing in things:
        path = client.path(kind_named(thing.kind), thing.name, project=thing.project)
        await client.change("DELETE", path, query={"now": "true"} if thing.kind == "vm" else {})
    accepted = await client.change("DELETE", client.path(kind, name))
    if wait_s:
        await settle(client, accepted.operation, wait_s)
    _say(
        f"host {host.name}: {'is removed' if wait_s else 'removal accepted'}; its certificate is refused from now on. "
        "On the machine, if it still is: skerry-agent leave --force"
    )


async def _host(client: Client, kind: AnyKind, name: str) -> Shown:
    one, _ = await client.one(kind, name)
    return shown(one.resource)


async def _things(client: Client, host: Shown) -> list[Thing]:
    """Return what is on a host, of every project: snapshots before machines before the disks that no machine owns."""
    found = []
    for project in await _all(client, client.path(kind_named("project"))):
        for kind in ("snapshot", "vm", "volume"):
            path = client.path(kind_named(kind), project=project.name)
            rows = await _all(client, path)
            found += [_thing(row) for row in rows if _is_on(row, host) and not (kind == "volume" and row.owner)]
    return sorted(found, key=lambda thing: (thing.kind, thing.project, thing.name))


async def _all(client: Client, path: str) -> list[Shown]:
    return [shown(raw) async for page in client.pages(path) for raw in page.items]


def _is_on(row: Shown, host: Shown) -> bool:
    return row.status.get("host") == host.name


def _thing(row: Shown) -> Thing:
    state = "deleting" if row.deleted_at else str(row.status.get("state", ""))
    protected = bool(row.spec.get("protected"))
    return Thing(kind=row.kind, project=row.project, name=row.name, state=state, becomes="", protected=protected)


def _drained(thing: Thing, *, stop_vms: bool) -> Thing:
    if not thing.runs:
        return msgspec.structs.replace(thing, becomes="stays, off")
    becomes = "is stopped, and stays" if stop_vms else "runs on: stop it, or consent with --stop-vms"
    return msgspec.structs.replace(thing, becomes=becomes)


def _lost(thing: Thing) -> Thing:
    return msgspec.structs.replace(
        thing, becomes="is given up, with its disks" if thing.kind == "vm" else "is given up"
    )


async def _until_quiet(client: Client, host: Shown, wait_s: float) -> list[Thing]:
    """Return the machines that run on a host, once there are none or the time is up."""
    ends = time.monotonic() + wait_s
    with line() as progress:
        while left := [thing for thing in await _things(client, host) if thing.runs]:
            if time.monotonic() >= ends:
                return left
            progress.say(f"host {host.name}: {_count(left)} still on")
            await asyncio.sleep(LOOK_AGAIN_S)
    return []


def _names(things: Iterable[Thing]) -> str:
    names = [f"{thing.kind} {thing.name} of {thing.project}" for thing in things]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _count(things: list[Thing]) -> str:
    return f"{len(things)} machine{'' if len(things) == 1 else 's'}"


def _say(text: str) -> None:
    click.echo(text, err=form() in ("json", "yaml"))


def _print(plan: Plan) -> None:
    if form() in ("json", "yaml"):
        print_data(msgspec.json.encode(plan))
        return
    print_table(
        ["KIND", "PROJECT", "NAME", "STATE", "BECOMES"],
        [[one.kind, one.project, one.name, one.state, one.becomes] for one in plan.things],
        empty=f"host {plan.host}: no machine is on it",
    )

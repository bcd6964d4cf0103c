"""`skerry-agent leave`: having the controller let this host go, and removing all that Skerry made on it.

Things go the way they always go: by tombstones, through the kinds' own plans. Those of documents that are known are
written here, and of what nobody knows any more one is made up from its id. It may die at any line and be typed again.
"""

import asyncio
import contextlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from agent import join
from agent.join import Identity
from agent.kinds.unit import AnyUnitKind
from agent.loop import Loop
from agent.memory import Memory
from common.documents import Desired, DocKey, key_of, last_document
from common.errors import Conflict, Denied, Temporary
from common.ids import Id, Revision
from common.protocol import DesiredBatch, Found

CLEARED_IN_S = 120.0
_LOOK_EVERY_S = 0.1
_BUILT = frozenset({"domain", "disk", "tap", "bridge", "vxlan", "namespace", "dnsmasq"})
"""What is no file of a directory that goes as a whole."""


async def let_go(identity: Identity | None, *, force: bool) -> str:
    """Tell the controller, and return in words what came of it.

    Raises Conflict where it wants something on this host, Temporary where it can't be asked (not with `force`).
    """
    if identity is None:
        return "this machine had joined no cloud, or left it before"
    try:
        await join.leave(identity)
    except Denied as err:
        return f"{identity.url} had let it go before: {err.detail}"
    except Temporary as err:
        if force:
            return (
                f"the controller does not know: {err.detail}; an operator: skerry host remove {identity.name} --force"
            )
        raise Temporary(
            err.detail,
            fix="bring it back; or, where it is gone for good, go without it: skerry-agent leave --force",
        ) from err
    return f"{identity.url} let {identity.name} go; to forget it there: skerry host remove {identity.name}"


def refuse_losing(found: Iterable[Found]) -> None:
    """Raise Conflict where machines or disks are here: nobody but the one who types decides that they go."""
    kept = sorted({f"{one.what} {one.name}" for one in found if one.owner and one.what in ("domain", "disk")})
    if kept:
        raise Conflict(
            f"on this machine there is still {', '.join(kept[:8])}{' and more' if len(kept) > 8 else ''}",
            fix="save what is worth it; skerry-agent leave --force destroys them",
        )


def tombstones(known: Mapping[DocKey, Desired], newest: Revision, found: Iterable[Found]) -> tuple[Desired, ...]:
    """Return the orders to destroy everything: each document that is known, and each owner of something found."""
    dead = {key: msgspec.structs.replace(item, gone=True, revision=Revision(newest + 1)) for key, item in known.items()}
    for owner, detail in sorted({(one.owner, one.detail) for one in found if one.owner}):
        doc = last_document(Id(owner), detail)
        if doc is not None and key_of(doc) not in dead:
            dead[key_of(doc)] = Desired(key=key_of(doc), revision=Revision(newest + 1), doc=doc, gone=True)
    return tuple(dead.values())


async def survey(kinds: Iterable[AnyUnitKind]) -> tuple[Found, ...]:
    """List everything on this host that Skerry could have made."""
    return tuple([found for kind in kinds for found in await kind.survey()])


async def clear(memory: Memory, kinds: Sequence[AnyUnitKind], *, limit_s: float = CLEARED_IN_S) -> None:
    """Destroy everything of Skerry's on this host. Raises Temporary, with what is left, where that takes too long."""
    found = await survey(kinds)
    await memory.apply(DesiredBatch(items=tombstones(memory.items, memory.newest(), found), full=False))
    loop = Loop(memory=memory, kinds=kinds, sink=lambda _report: None)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(loop.run())
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limit_s):
                    while memory.units():
                        await asyncio.sleep(_LOOK_EVERY_S)
                        await loop.delivered(loop.last_words())
        finally:
            running.cancel()
    if left := sorted({f"{one.what} {one.name}" for one in await survey(kinds) if one.owner and one.what in _BUILT}):
        raise Temporary(
            f"after {limit_s:.0f} s there is still {', '.join(left[:8])}",
            fix="the lines above say why; type it again, or remove them by hand (docs/operators.md)",
        )


def wipe(directories: Iterable[Path]) -> None:
    """Remove what is in these directories, the identity last: without it nothing could be tried again."""
    for directory in directories:
        entries = (
            sorted(directory.iterdir(), key=lambda path: path.name == "identity.pem") if directory.exists() else []
        )
        for path in entries:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

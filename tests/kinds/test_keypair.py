"""A key's life: a row that never changes, and goes when nothing uses it any more."""

import pytest

from common.errors import Conflict, Invalid
from common.kinds.kind import AnyResource
from controller.kinds.outcome import Do, Done, Wait
from controller.store.writes import Forget
from tests.kinds.bench import Bench


async def made(bench: Bench) -> AnyResource:
    await bench.furniture()
    return await bench.create("keypair", "shop", "mine", public_key="ssh-ed25519 AAAA me")


async def test_it_is_there_at_once(bench: Bench) -> None:
    done = bench.plan(await made(bench))
    assert isinstance(done, Done)
    assert done.status.state == "active"


async def test_it_never_changes(bench: Bench) -> None:
    row = await made(bench)
    with pytest.raises(Invalid, match="public_key can't change once it is made"):
        await bench.change(row, public_key="ssh-rsa BBBB you")


async def test_it_stays_as_long_as_a_machine_uses_it(bench: Bench) -> None:
    row = await made(bench)
    host = await bench.connected_host("h1")
    vm = await bench.create("vm", "shop", "web", image="tiny", size="small", keypairs=["mine"])
    await bench.rest(vm, host)
    with pytest.raises(Conflict, match=r"keypair mine is used by vm (shop/)?web"):
        await bench.delete(row)
    await bench.delete(vm)
    await bench.delete(row)
    waiting = bench.plan(row)
    assert isinstance(waiting, Wait)
    assert waiting.message == "used until vm web is gone"
    await bench.buried([vm], [host])
    assert bench.plan(row) == Do(writes=(Forget(resource=row.id),), say="forgetting the keypair")
    await bench.buried([row], [])


@pytest.mark.parametrize("text", ["ssh-ed25519", "AAAA", "ssh-ed25519 AAAA\nssh-rsa BBBB", "ssh-dss AAAA", ""])
async def test_what_is_no_public_key_is_refused(bench: Bench, text: str) -> None:
    await bench.project()
    with pytest.raises(Invalid, match="public_key"):
        bench.admit_create("keypair", "shop", "me", public_key=text)

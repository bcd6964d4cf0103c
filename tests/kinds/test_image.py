"""An image's life: a row without bytes, then with, used by machines that it waits for at its end."""

import msgspec
import pytest

from common.errors import Denied, Invalid
from common.kinds import kind_named
from common.kinds.domain import DEFAULT_DOMAIN
from common.kinds.kind import Role
from controller.auth.caller import built_in
from controller.kinds import admission
from controller.kinds.admission import NewResource
from controller.kinds.outcome import Do, Done, Wait
from controller.store.writes import Forget
from tests.kinds.bench import Bench


async def test_it_is_empty_until_its_bytes_come(bench: Bench) -> None:
    await bench.project()
    image = await bench.create("image", "shop", "tiny")
    empty = bench.plan(image)
    assert isinstance(empty, Done)
    assert empty.status.state == "empty"
    assert empty.status.message == "has no content yet: skerry image upload tiny FILE"
    await bench.fill(image)
    active = bench.plan(image)
    assert isinstance(active, Done)
    assert active.status.state == "active"


async def test_a_deleted_image_stays_while_a_machine_that_goes_still_uses_it(bench: Bench) -> None:
    await bench.furniture()
    host = await bench.connected_host("h1")
    image = bench.named("image", "tiny")
    vm = await bench.create("vm", "shop", "web", image="tiny", size="small")
    await bench.rest(vm, host)
    await bench.delete(vm)
    await bench.delete(image)
    waiting = bench.plan(image)
    assert isinstance(waiting, Wait)
    assert waiting.message.startswith("used until ")
    assert "vm web" in waiting.message
    await bench.buried([vm], [host])
    assert bench.plan(image) == Do(writes=(Forget(resource=image.id),), say="forgetting the image")


async def test_only_operators_publish(bench: Bench) -> None:
    await bench.project()
    image = await bench.create("image", "shop", "tiny", public=True)
    assert image.spec.public
    admin = built_in("shop/a", "shop", Role.ADMIN, bench.context.caller.request, DEFAULT_DOMAIN)
    context = msgspec.structs.replace(bench.context, caller=admin)
    with pytest.raises(Denied, match="a public image is for the cloud's operators"):
        admission.create(context, kind_named("image"), "shop", NewResource(name="own", spec={"public": True}))


async def test_its_digest_is_nobodys_to_set(bench: Bench) -> None:
    await bench.project()
    with pytest.raises(Invalid, match="digest is set by Skerry"):
        bench.admit_create("image", "shop", "tiny", digest="sha256:" + "a" * 64)


@pytest.mark.parametrize("filled", [True, False])
async def test_delete_wins_from_every_state(bench: Bench, filled: bool) -> None:
    await bench.project()
    image = await bench.create("image", "shop", "tiny")
    if filled:
        await bench.fill(image)
    await bench.delete(image)
    await bench.buried([image], [])

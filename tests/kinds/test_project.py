"""A project's life: it goes only when the last thing in it has gone."""

import pytest

from common.errors import Conflict
from controller.kinds.outcome import Do, Done, Wait
from controller.store.writes import DropAccount, Forget
from tests.kinds.bench import Bench


async def test_it_is_there_at_once(bench: Bench) -> None:
    done = bench.plan(await bench.create("project", "", "shop"))
    assert isinstance(done, Done)
    assert done.status.state == "active"


async def test_it_can_not_go_while_something_in_it_is_wanted(bench: Bench) -> None:
    await bench.project()
    for number in range(7):
        await bench.create("network", "shop", f"n{number}")
    with pytest.raises(Conflict) as refused:
        await bench.delete(bench.named("project", "shop", ""))
    assert refused.value.detail.startswith("project shop still has network n0, network n1")
    assert refused.value.detail.endswith(" and 2 more")


async def test_it_waits_for_what_is_still_going(bench: Bench) -> None:
    await bench.project()
    network = await bench.create("network", "shop", "back")
    project = bench.named("project", "shop", "")
    await bench.delete(network)
    await bench.delete(project)
    waiting = bench.plan(project)
    assert isinstance(waiting, Wait)
    assert waiting.message == "1 things of it are still being deleted"
    await bench.buried([network], [])
    writes = (Forget(resource=project.id), DropAccount(account="project/shop"))
    assert bench.plan(project) == Do(writes=writes, say="forgetting the project")
    await bench.rest(project)
    assert not [one for one in await bench.store.standings() if one.account == "project/shop"]


async def test_the_root_volume_of_a_vm_that_goes_does_not_hold_it(bench: Bench) -> None:
    await bench.furniture()
    host = await bench.connected_host("h1")
    vm = await bench.create("vm", "shop", "web", image="tiny", size="small")
    await bench.rest(vm, host)
    rows = [bench.named("image", "tiny"), bench.named("network", "default"), bench.named("project", "shop", "")]
    for row in (vm, *rows):
        await bench.delete(row)
    await bench.buried([vm, *rows], [host])


async def test_the_operators_project_stays(bench: Bench) -> None:
    system = await bench.create("project", "", "system")
    with pytest.raises(Conflict, match="holds the operators' tokens and stays"):
        await bench.delete(system)


async def test_nothing_is_made_in_a_project_that_goes(bench: Bench) -> None:
    await bench.project()
    await bench.delete(bench.named("project", "shop", ""))
    with pytest.raises(Conflict, match="project shop is being deleted"):
        bench.admit_create("network", "shop", "back")

"""The life of a domain: a row that projects are in."""

import pytest

from common.errors import Conflict
from common.kinds.domain import DEFAULT_DOMAIN
from controller.kinds.outcome import Done, Wait
from tests.kinds.bench import Bench


async def test_a_domain_is_there_at_once_and_goes_at_once(bench: Bench) -> None:
    acme = await bench.create("domain", "", "acme")
    assert isinstance(bench.plan(acme), Done)
    await bench.delete(acme)
    await bench.buried([acme], [])


async def test_every_cloud_has_the_default_domain_which_stays(bench: Bench) -> None:
    default = bench.named("domain", "default", "")
    assert default.id == DEFAULT_DOMAIN
    with pytest.raises(Conflict, match="domain default holds what belongs to no other, and stays"):
        await bench.delete(default)


async def test_a_project_is_in_the_default_domain_or_in_the_one_that_it_names(bench: Bench) -> None:
    acme = await bench.create("domain", "", "acme")
    await bench.project()
    await bench.create("project", "", "rockets", domain="acme")
    assert bench.store.seen.domain_of("shop") == DEFAULT_DOMAIN
    assert bench.store.seen.domain_of("rockets") == acme.id
    assert bench.store.seen.domain_of("nowhere") is None


async def test_a_domain_goes_after_its_last_project(bench: Bench) -> None:
    acme = await bench.create("domain", "", "acme")
    project = await bench.create("project", "", "rockets", domain="acme")
    with pytest.raises(Conflict, match="domain acme is used by project rockets"):
        await bench.delete(acme)
    await bench.delete(project)
    await bench.delete(acme)
    assert isinstance(bench.plan(acme), Wait)
    await bench.buried([project, acme], [])

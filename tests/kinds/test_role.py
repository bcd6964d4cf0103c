"""A role of one's own: grants that mean something, and no more than its maker has."""

import msgspec
import pytest

from common.errors import Conflict, Denied, Invalid
from common.kinds import kind_named
from common.kinds.domain import DEFAULT_DOMAIN
from common.kinds.kind import Role
from controller.auth.caller import built_in
from controller.kinds import admission
from controller.kinds.admission import NewResource
from controller.kinds.outcome import Done
from tests.kinds.bench import Bench


async def test_a_role_is_there_at_once_and_goes_after_who_has_it(bench: Bench) -> None:
    await bench.project()
    role = await bench.create("role", "", "starter", grants=[{"actions": ["vm.start"], "labels": {"env": "dev"}}])
    token = await bench.create("token", "shop", "ci", custom_role="starter")
    assert isinstance(bench.plan(role), Done)
    with pytest.raises(Conflict, match="role starter is used by token ci"):
        await bench.delete(role)
    await bench.delete(token)
    await bench.delete(role)
    await bench.buried([token, role], [])


async def test_a_pattern_that_stands_for_nothing_is_refused_with_what_there_is(bench: Bench) -> None:
    with pytest.raises(Invalid, match=r"there is no action network\.reboot") as refused:
        await bench.create("role", "", "x", grants=[{"actions": ["network.reboot"]}])
    assert "network.create" in refused.value.fix


async def test_nobody_makes_a_role_that_may_do_more(bench: Bench) -> None:
    member = built_in("bob@default", "shop", Role.MEMBER, bench.context.caller.request)
    held = msgspec.structs.replace(member.held[0], project="", domain=DEFAULT_DOMAIN)
    member = msgspec.structs.replace(member, held=(held,), domain=DEFAULT_DOMAIN)
    context = msgspec.structs.replace(bench.context, caller=member)
    with pytest.raises(Denied, match=r"can't give token\.create in the whole domain to role x"):
        admission.create(
            context, kind_named("role"), "", NewResource(name="x", spec={"grants": [{"actions": ["token.create"]}]})
        )

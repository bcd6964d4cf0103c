"""What hosts share of a CPU: never more than any of them has, whatever comes or goes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.cpus import LEVELS, Flags, fallback, level_of, named, needs_of, shared
from common.ids import HostId
from controller.store.processors import Processors
from controller.store.rows import Capacity, Traits
from tests.unit.rows import host_id

FLAGS = st.frozensets(st.sampled_from([*sorted(LEVELS["x86-64-v2"]), "avx", "aes", "svm"]))
FLEETS = st.lists(FLAGS, max_size=6)


@given(FLEETS, FLAGS)
def test_what_is_shared_is_had_by_every_host_that_has_what_is_needed(fleet: list[Flags], needs: Flags) -> None:
    found = shared(fleet, needs)
    capable = [flags for flags in fleet if needs <= flags]
    assert all(found <= flags for flags in capable)
    assert needs <= found or not capable
    assert all(any(flag not in flags for flags in capable) for flags in capable for flag in flags - found)


@given(FLEETS, FLAGS, st.randoms(use_true_random=False))
def test_the_order_of_hosts_does_not_matter(fleet: list[Flags], needs: Flags, chance: object) -> None:
    turned = list(fleet)
    chance.shuffle(turned)  # type: ignore[attr-defined]
    assert shared(turned, needs) == shared(fleet, needs)


@given(st.lists(FLAGS, min_size=1, max_size=6), FLAGS)
def test_one_host_more_never_adds_a_flag(fleet: list[Flags], comes: Flags) -> None:
    assert shared([*fleet, comes]) <= shared(fleet)


@given(FLAGS)
def test_a_level_is_reached_with_all_that_it_needs_and_not_before(flags: Flags) -> None:
    level = level_of(flags)
    assert needs_of(level) <= flags
    assert all(needs <= needs_of(level) for needs in LEVELS.values() if needs <= flags)
    assert needs_of(fallback(flags)) <= flags


def test_levels_contain_one_another() -> None:
    v2, v3, v4 = LEVELS.values()
    assert v2 < v3 < v4
    assert level_of(frozenset()) == "x86-64-v1"
    assert level_of(v4) == "x86-64-v4"
    assert named({"c", "a", "b"}, 2) == "a, b and 1 more"


CHANGES = st.lists(
    st.tuples(st.integers(1, 4), st.sampled_from(["", "tcg", "kvm A"]), FLAGS, st.booleans()), max_size=12
)


@given(CHANGES, FLAGS)
def test_the_index_says_what_a_recount_says(changes: list[tuple[int, str, Flags, bool]], needs: Flags) -> None:
    index, known = Processors(), dict[HostId, tuple[str, Flags]]()
    for number, make, flags, there in changes:
        host = host_id(number)
        traits = Traits(make=make, flags=tuple(sorted(flags)))
        index.keep(Capacity(host=host, vcpus=1, memory_mib=1, disk_gib=1, traits=traits), there=there)
        known.pop(host, None)
        if there and make:
            known[host] = (make, flags)
        for one, (its, has) in known.items():
            alike = [other for other_make, other in known.values() if other_make == its]
            assert index.shared(one, needs) == (shared(alike, needs) if needs <= has else None)
    assert {one: flags for hosts in index.makes().values() for one, flags in hosts.items()} == {
        one: flags for one, (_, flags) in known.items()
    }


@pytest.mark.parametrize("there", [True, False])
def test_a_host_that_has_not_said_shares_nothing(*, there: bool) -> None:
    index = Processors()
    index.keep(Capacity(host=host_id(1), vcpus=1, memory_mib=1, disk_gib=1), there=there)
    assert index.shared(host_id(1)) is None
    assert index.makes() == {}

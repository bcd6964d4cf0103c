"""How much memory a guest lends its host."""

from hypothesis import given
from hypothesis import strategies as st

from agent.kinds.balloon import HIGH_PERCENT, LEAST_STEP_MIB, LOW_PERCENT, GuestMemory, HostMemory, target_mib

SHORT = HostMemory(total_mib=1000, available_mib=50)
ENOUGH = HostMemory(total_mib=1000, available_mib=900)


def guest(has_mib: int = 1024, unused_mib: int | None = 600) -> GuestMemory:
    return GuestMemory(full_mib=1024, has_mib=has_mib, unused_mib=unused_mib)


def test_what_it_does_not_use_is_lent_but_for_a_tenth() -> None:
    assert target_mib(256, guest(), SHORT) == 1024 - (600 - 102)


def test_it_keeps_what_it_said() -> None:
    assert target_mib(900, guest(), SHORT) == 900


def test_who_keeps_all_lends_nothing() -> None:
    assert target_mib(None, guest(), SHORT) is None


def test_a_guest_that_says_nothing_is_left_alone() -> None:
    assert target_mib(256, guest(unused_mib=None), SHORT) is None


def test_with_room_on_the_host_it_gets_all_back() -> None:
    assert target_mib(256, guest(has_mib=526), ENOUGH) == 1024
    assert target_mib(256, guest(), ENOUGH) is None


def test_who_shall_keep_all_from_now_on_gets_it_back_though_the_host_is_short() -> None:
    assert target_mib(None, guest(has_mib=526), SHORT) == 1024


amounts = st.integers(0, 1 << 16)


@given(
    keeps=st.none() | st.integers(64, 1 << 16), full=st.integers(64, 1 << 16), share=st.floats(0, 1),
    used=st.floats(0, 1), available=st.integers(0, 1000),
)  # fmt: skip
def test_it_stays_within_its_bounds_and_comes_to_rest(
    keeps: int | None, full: int, share: float, used: float, available: int
) -> None:
    least = min(full, keeps or full)
    has = int(least + share * (full - least))
    working = int(used * has)
    host = HostMemory(total_mib=1000, available_mib=available)
    moves = 0
    while True:
        target = target_mib(keeps, GuestMemory(full_mib=full, has_mib=has, unused_mib=has - working), host)
        if target is None:
            break
        assert least <= target <= full
        assert target >= working or target > has
        lends = target < has
        assert (
            host.available_percent < LOW_PERCENT if lends else host.available_percent >= HIGH_PERCENT or least == full
        )
        assert not lends or has - target >= LEAST_STEP_MIB
        has, moves = target, moves + 1
        assert moves < 3

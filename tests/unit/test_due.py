"""The heap of moments: each resource once, at its earliest moment, in order."""

from hypothesis import given
from hypothesis import strategies as st

from common.ids import Id
from controller.loop.due import Due

A, B, C = Id("vm-a"), Id("vm-b"), Id("vm-c")


def filled(**moments: float) -> Due:
    """Return a heap with these moments."""
    due = Due()
    for name, at in moments.items():
        due.put(Id(f"vm-{name}"), at)
    return due


def test_what_is_due_comes_earliest_first_and_the_rest_stays() -> None:
    due = filled(a=3, b=1, c=9)
    assert due.pop(now=5, most=10) == [B, A]
    assert len(due) == 1
    assert due.next_at() == 9


def test_a_moment_is_due_when_it_has_come() -> None:
    due = filled(a=5)
    assert due.pop(now=4.999, most=1) == []
    assert due.pop(now=5, most=1) == [A]


def test_an_earlier_moment_replaces_a_later_one() -> None:
    due = filled(a=60)
    due.put(A, 0)
    assert due.pop(now=0, most=10) == [A]
    assert due.pop(now=100, most=10) == []


def test_a_later_moment_does_not_put_off_an_earlier_one() -> None:
    due = filled(a=1)
    due.put(A, 60)
    assert due.next_at() == 1
    assert due.pop(now=100, most=10) == [A]
    assert due.next_at() is None


def test_no_more_are_taken_than_asked_for() -> None:
    due = filled(a=1, b=2, c=3)
    assert due.pop(now=9, most=2) == [A, B]
    assert due.pop(now=9, most=2) == [C]


def test_what_is_dropped_is_never_due() -> None:
    due = filled(a=1, b=2)
    due.drop(A)
    due.drop(C)
    assert due.next_at() == 2
    assert due.pop(now=9, most=10) == [B]


def test_what_is_put_again_after_it_was_taken_or_dropped_is_due_once() -> None:
    due = filled(a=1)
    due.pop(now=1, most=1)
    due.put(A, 1)
    due.drop(A)
    due.put(A, 1)
    assert due.pop(now=1, most=10) == [A]
    assert due.pop(now=1, most=10) == []


def test_an_empty_heap_has_no_moment() -> None:
    assert Due().next_at() is None
    assert Due().pop(now=1e12, most=10) == []


put = st.tuples(st.just("put"), st.integers(0, 4), st.integers(0, 9))
drop = st.tuples(st.just("drop"), st.integers(0, 4), st.just(0))
pop = st.tuples(st.just("pop"), st.integers(1, 3), st.integers(0, 9))


@given(moves=st.lists(put | drop | pop, max_size=40))
def test_it_is_a_plain_table_of_earliest_moments(moves: list[tuple[str, int, int]]) -> None:
    due, model = Due(), dict[Id, int]()
    for what, number, at in moves:
        name = Id(f"vm-{number}")
        match what:
            case "put":
                due.put(name, at)
                model[name] = min(at, model.get(name, at))
            case "drop":
                due.drop(name)
                model.pop(name, None)
            case _:
                ready = sorted((moment, one) for one, moment in model.items() if moment <= at)[:number]
                assert due.pop(now=at, most=number) == [one for _, one in ready]
                for _, one in ready:
                    del model[one]
        assert len(due) == len(model)
        assert due.next_at() == min(model.values(), default=None)

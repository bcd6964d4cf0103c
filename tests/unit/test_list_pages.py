"""Pages of a collection: any filter and any page size give every thing once, in order, whatever comes or goes."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from multidict import MultiDict

from common.ids import Id, Revision
from common.kinds import kind_named
from common.kinds.image import ImageSpec
from common.kinds.kind import Resource, Status
from controller.api.query import Ordered, list_query, select
from controller.store.rows import Gone, Put
from controller.store.working import WorkingSet

IMAGE = kind_named("image")
NAMES = st.sampled_from(["a", "ab", "abc", "b", "b-1", "c"])


def image(number: int, name: str, project: str, *, public: bool) -> Any:
    return Resource(
        id=Id(f"img-{number:012}"), kind="image", project=project, name=name, labels={"n": name[0]}, generation=1,
        observed_generation=1, spec=ImageSpec(public=public), status=Status(), owner=None, created_at=1.0,
        deleted_at=None, revision=Revision(number + 1),
    )  # fmt: skip


def pages(seen: WorkingSet, ordered: Ordered, **query: str) -> list[Any]:
    found: list[Any] = []
    after = ""
    while True:
        wanted = list_query(MultiDict(query | ({"after": after} if after else {})))
        page, following = select(ordered.behind(IMAGE, "p", wanted.after), wanted)
        found += page
        if following is None:
            return found
        after = following


@given(
    st.lists(st.tuples(NAMES, st.sampled_from("pqr"), st.booleans()), max_size=30, unique_by=lambda one: one[:2]),
    st.integers(1, 7),
    st.sampled_from(["", "a", "b-", "zz"]),
)
def test_pages_are_the_sorted_filtered_whole(things: list[tuple[str, str, bool]], limit: int, prefix: str) -> None:
    seen = WorkingSet()
    rows = [image(number, name, project, public=public) for number, (name, project, public) in enumerate(things)]
    seen.apply([Put(row) for row in rows])

    found = pages(seen, Ordered(seen), limit=str(limit), name=prefix)

    mine = [row for row in rows if row.project == "p" or row.spec.public]
    wanted = sorted((row for row in mine if row.name.startswith(prefix)), key=lambda row: (row.name, row.id))
    assert found == wanted


def test_what_came_and_went_between_two_pages_shows() -> None:
    seen, rows = WorkingSet(), [image(number, name, "p", public=False) for number, name in enumerate("abcd")]
    seen.apply([Put(row) for row in rows])
    ordered = Ordered(seen)
    first, following = select(ordered.behind(IMAGE, "p", ("", "")), list_query(MultiDict(limit="1")))
    new = image(9, "bb", "p", public=False)
    seen.apply([Gone(rows[2]), Put(new)])

    rest = select(ordered.behind(IMAGE, "p", ("a", rows[0].id)), list_query(MultiDict()))[0]

    assert following == f"a,{rows[0].id}"
    assert first == [rows[0]]
    assert rest == [rows[1], new, rows[3]]


def test_what_only_went_is_gone_although_the_revision_stands() -> None:
    seen, rows = WorkingSet(), [image(number, name, "p", public=False) for number, name in enumerate("abc")]
    seen.apply([Put(row) for row in rows])
    ordered = Ordered(seen)
    assert len(list(ordered.behind(IMAGE, "p", ("", "")))) == 3

    seen.apply([Gone(rows[1])])

    assert list(ordered.behind(IMAGE, "p", ("", ""))) == [rows[0], rows[2]]

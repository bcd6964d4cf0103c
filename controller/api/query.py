"""Query strings and headers to typed values, and pages of collections: no I/O; errors name the parameter."""

import re
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice

import msgspec
from multidict import MultiMapping

from common.errors import FieldError, Invalid, PreconditionFailed, PreconditionRequired
from common.ids import Id
from common.kinds.kind import AnyKind, AnyResource, Scope
from controller.store.working import WorkingSet, is_public

LIST_DEFAULT, LIST_MOST = 100, 1000

COLLECTIONS_KEPT = 64
"""Collections whose order is remembered."""

_CURSOR = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}(?:,[a-z]+-[0-9a-z]{12})?")
_LABEL = re.compile(r"(?P<key>[a-z0-9](?:[a-z0-9._/-]{0,61}[a-z0-9])?)=(?P<value>.{0,255})", re.DOTALL)


class ListQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which things of a collection to show."""

    limit: int = LIST_DEFAULT
    after: tuple[str, str] = ("", "")
    """Name and id of the last one shown before."""
    labels: tuple[tuple[str, str], ...] = ()
    state: str = ""
    name: str = ""
    """A prefix."""


LIST_PARAMETERS = {
    "limit": f"how many at most, 1 to {LIST_MOST}",
    "after": "the cursor that the page before gave as `next`",
    "label": "only things with this label, `key=value`; may be repeated, all must hold",
    "state": "only things whose status has this state",
    "name": "only things whose name begins so",
}


def list_query(query: MultiMapping[str]) -> ListQuery:
    """Read the query of a collection. Raises Invalid."""
    refuse_unknown(query, LIST_PARAMETERS)
    return ListQuery(
        limit=integer(query, "limit", LIST_DEFAULT, 1, LIST_MOST),
        after=_cursor(query.get("after", "")),
        labels=label_filters(query),
        state=query.get("state", ""),
        name=query.get("name", ""),
    )


def select(rows: Iterable[AnyResource], wanted: ListQuery) -> tuple[list[AnyResource], str | None]:
    """Return one page of rows that come in order from behind the cursor, and the next cursor (None: that was all)."""
    page = list(islice((row for row in rows if _matches(row, wanted)), wanted.limit + 1))
    if len(page) <= wanted.limit:
        return page, None
    page = page[: wanted.limit]
    return page, f"{page[-1].name},{page[-1].id}"


class Ordered:
    """The things of each collection in the order of names, kept while the working set stays at one revision: a list
    that is read page by page is sorted once."""

    def __init__(self, seen: WorkingSet) -> None:
        self._seen = seen
        self._kept: OrderedDict[tuple[str, str], tuple[int, list[tuple[str, Id]]]] = OrderedDict()

    def behind(self, kind: AnyKind, project: str, after: tuple[str, str]) -> Iterator[AnyResource]:
        """Give a collection's things behind a name and id, in order."""
        keys = self._keys(kind, project)
        name, identity = after
        start = bisect_right(keys, (name, Id(identity or "\uffff"))) if name else 0
        for _, key in islice(keys, start, None):
            if row := self._seen.get(key):  # what went since has no revision of its own
                yield row

    def _keys(self, kind: AnyKind, project: str) -> list[tuple[str, Id]]:
        where = (kind.name, project)
        revision, keys = self._kept.pop(where, (-1, []))
        if revision != self._seen.revision:
            rows = self._seen.of_kind(kind.name)
            everywhere = kind.scope is Scope.CLOUD
            keys = sorted((row.name, row.id) for row in rows if everywhere or row.project == project or is_public(row))
        self._kept[where] = (self._seen.revision, keys)
        if len(self._kept) > COLLECTIONS_KEPT:
            self._kept.popitem(last=False)
        return keys


def _matches(row: AnyResource, wanted: ListQuery) -> bool:
    return (
        (not wanted.state or row.status.state == wanted.state)
        and row.name.startswith(wanted.name)
        and all(row.labels.get(key) == value for key, value in wanted.labels)
    )


def _cursor(text: str) -> tuple[str, str]:
    if not text:
        return "", ""
    if not _CURSOR.fullmatch(text):
        raise bad("after", f"{text[:80]!r} is no cursor", "give what the page before showed as `next`, or a name")
    name, _, identity = text.partition(",")
    return name, identity


def label_filters(query: MultiMapping[str]) -> tuple[tuple[str, str], ...]:
    """Read `label=key=value`, any number of them. Raises Invalid."""
    return tuple(_label(text) for text in query.getall("label", []))


def _label(text: str) -> tuple[str, str]:
    found = _LABEL.fullmatch(text)
    if found is None:
        raise bad("label", f"{text[:80]!r} is no label filter", "write label=key=value, such as label=env=test")
    return found["key"], found["value"]


def integer(query: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    """Read a whole number within bounds. Raises Invalid."""
    text = query.get(name)
    if text is None:
        return default
    if not re.fullmatch(r"[0-9]{1,19}", text) or not least <= int(text) <= most:
        raise bad(name, f"{text[:40]!r} is not a whole number from {least} to {most}", f"leave it out for {default}")
    return int(text)


def flag(query: Mapping[str, str], name: str) -> bool:
    """Read true or false; false where it is left out. Raises Invalid."""
    text = query.get(name, "false")
    if text not in ("true", "false"):
        raise bad(name, f"{text[:40]!r} is neither true nor false", f"say {name}=true, or leave it out")
    return text == "true"


def moment(query: Mapping[str, str], name: str) -> float:
    """Read a moment as epoch seconds; 0 where there is none. Raises Invalid."""
    text = query.get(name, "")
    if not text:
        return 0.0
    if re.fullmatch(r"[0-9]{1,11}(?:\.[0-9]{1,9})?", text):
        return float(text)
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError) as err:
        raise bad(name, f"{text[:40]!r} is no moment", "give epoch seconds or 2026-11-22T08:00:00Z") from err


def refuse_unknown(query: Mapping[str, str], known: Collection[str]) -> None:
    """Raise Invalid for a parameter that means nothing here: passed over, it would look as if it had held."""
    for name in query:
        if name not in known:
            there = f"there is {', '.join(known)}" if known else "there is none here"
            raise bad(name[:40], "there is no such parameter", there)


def bad(parameter: str, message: str, fix: str) -> Invalid:
    """Return the error for a query parameter."""
    return Invalid(
        f"query parameter {parameter}: {message}", fix=fix, errors=(FieldError(field=parameter, message=message),)
    )


def bad_header(name: str, message: str, fix: str) -> Invalid:
    """Return the error for a request's header."""
    return Invalid(f"header {name}: {message}", fix=fix, errors=(FieldError(field=name, message=message),))


def require_match(header: str | None, row: AnyResource) -> None:
    """Let a change pass whose If-Match names the present generation. Raises PreconditionRequired or -Failed."""
    if header is None:
        raise PreconditionRequired(
            f"a change of {row.kind} {row.name} needs the header If-Match: it says which state was seen",
            fix=f'read it, then send its ETag: If-Match: "{row.generation}"; If-Match: * overwrites whatever is there',
        )
    check_match(header, row)


def check_match(header: str | None, row: AnyResource) -> None:
    """Like `require_match`, where the header may be left out."""
    if header is None or header.strip() == "*":
        return
    tags = [tag.strip() for tag in header.split(",")]
    if f'"{row.generation}"' not in tags:
        raise PreconditionFailed(
            f"{row.kind} {row.name} has generation {row.generation} by now; If-Match says {header[:80]}",
            fix="read it again, look at what changed, then repeat the change with the new ETag",
        )

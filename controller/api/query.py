"""Query strings and headers to typed values: pure, with errors that name the parameter and what it takes."""

import heapq
import re
from collections.abc import Collection, Iterable, Mapping

import msgspec
from multidict import MultiMapping

from common.errors import FieldError, Invalid, PreconditionFailed, PreconditionRequired
from common.kinds.kind import AnyResource

LIST_DEFAULT, LIST_MOST = 100, 1000

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
        labels=tuple(_label(text) for text in query.getall("label", [])),
        state=query.get("state", ""),
        name=query.get("name", ""),
    )


def select(rows: Iterable[AnyResource], wanted: ListQuery) -> tuple[list[AnyResource], str | None]:
    """Return one page in the order of names, and the cursor of the next (None: that was all)."""
    page = heapq.nsmallest(
        wanted.limit + 1,
        (row for row in rows if (row.name, row.id) > _behind(wanted.after) and _matches(row, wanted)),
        key=lambda row: (row.name, row.id),
    )
    if len(page) <= wanted.limit:
        return page, None
    page = page[: wanted.limit]
    return page, f"{page[-1].name},{page[-1].id}"


def _behind(after: tuple[str, str]) -> tuple[str, str]:
    name, identity = after
    return (name, identity or "\uffff") if name else ("", "")


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

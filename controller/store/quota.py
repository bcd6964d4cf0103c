"""Quotas: what each project and each domain uses up, changed with the row that uses it, and never above its limit.

An account (`project/shop`, `domain/dom-…`) has one row a counter. One statement charges a project and its domain for
all counters of a thing, each row only while it stays within its limit; where one does not, the transaction is undone.
So the books can't drift: not with many transactions in one commit, not with two controllers, not with a crash.
What a thing counts is kept with the thing (`resource.counts`): the same is given back as was taken.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    bindparam,
    case,
    delete,
    func,
    literal_column,
    or_,
    select,
    text,
    update,
)

from common.codec import from_json, to_json
from common.errors import Conflict, QuotaExceeded
from common.kinds import COUNTERS
from common.refusal import Refusal, Shortfall
from controller.store import tables
from controller.store.prepared import Prepared
from controller.store.rows import Counts, Standing, project_account
from controller.store.tx import Tx
from controller.store.writes import DropAccount, Recharge, Recount, SetLimits

_SET_LIMIT = text(
    "INSERT INTO quota (account, counter, used, ceiling, parent) VALUES (:account, :counter, 0, :ceiling, :parent) "
    "ON CONFLICT (account, counter) DO UPDATE SET ceiling = excluded.ceiling, parent = excluded.parent"
)

_SET_USED = text(
    "INSERT INTO quota (account, counter, used, parent) VALUES (:account, :counter, :used, :parent) "
    "ON CONFLICT (account, counter) DO UPDATE SET used = excluded.used"
)


def charge(tx: Tx, project: str, *, before: Counts, after: Counts) -> None:
    """Take what a thing counts now in place of what it counted. Raises QuotaExceeded: then nothing may be kept.

    One statement; none where nothing changes. Giving back is never refused.
    """
    more = {name: after.get(name, 0) - before.get(name, 0) for name in sorted({*before, *after})}
    more = {name: amount for name, amount in more.items() if amount}
    if not more or not project:
        return
    account = project_account(project)
    rows = tx.rows(_charge(tuple(more)), of_account=account, **{f"of_{name}": more[name] for name in more})
    parent = next((above for owner, _, above in rows if owner == account), "")
    taken = {(owner, name) for owner, name, _ in rows}
    wanted = {(owner, name) for owner in (account, parent) if owner for name in more}
    if not wanted <= taken:
        _make_up(tx, account, more, taken)


@cache
def _charge(counters: tuple[str, ...]) -> Prepared:
    """The statement for a set of counters: few sets, each built once."""
    c = tables.quota.c
    named: dict[str, ColumnElement[str]] = {name: literal_column(f"'{name}'") for name in counters}
    more = case(*((c.counter == named[name], bindparam(f"of_{name}", type_=BigInteger)) for name in counters))
    whole, nothing = c.used + more, literal_column("0", BigInteger)
    return Prepared(
        update(tables.quota)
        .where(c.counter.in_(named.values()), c.account.in_(_accounts(named[counters[0]])))
        .where(or_(more <= nothing, c.ceiling.is_(None), whole <= c.ceiling))
        .values(used=case((whole < nothing, nothing), else_=whole))
        .returning(c.account, c.counter, c.parent)
    )


def _accounts(counter: ColumnElement[str]) -> tuple[ColumnElement[str], ...]:
    """The account in question, and its parent, which each row of it knows."""
    own = tables.quota.alias("own").c
    account = bindparam("of_account", type_=own.account.type)
    return account, select(own.parent).where(own.account == account, own.counter == counter).scalar_subquery()


def _make_up(tx: Tx, account: str, more: Counts, taken: set[tuple[str, str]]) -> None:
    """Tell why a charge did not change all it should: a row is at its limit, or there is none yet, of a counter that is
    new. That one is made, and what it kept from being charged is."""
    c = tables.quota.c
    parent = tx.run(select(func.max(c.parent)).where(c.account == account)).scalar_one_or_none() or ""
    left = {(owner, name) for owner in (account, parent) if owner for name in more} - taken
    rows = tx.run(select(tables.quota).where(c.account.in_((account, parent)), c.counter.in_(more)))
    there = {(row.account, row.counter): row for row in rows if (row.account, row.counter) in left}
    over = [
        Shortfall(**_whose(tx, owner), counter=name, limit=row.ceiling, used=row.used, asked=more[name])
        for (owner, name), row in there.items()
        if row.ceiling is not None and 0 < more[name] > row.ceiling - row.used
    ]
    if over:
        raise _exceeded(over)
    for owner, name in sorted(left):
        row = there.get((owner, name))
        used = max((row.used if row else 0) + more[name], 0)
        above = parent if owner == account else ""
        tx.run(_SET_USED, {"account": owner, "counter": name, "used": used, "parent": above})


def _whose(tx: Tx, account: str) -> dict[str, Any]:
    what, _, name = account.partition("/")
    if what == "domain":
        c = tables.resource.c
        name = tx.run(select(c.name).where(c.id == name)).scalar_one_or_none() or name
    return {"of": what, "name": name}


_TITLES = {counter.name: counter.title for counter in COUNTERS}


def _exceeded(over: Iterable[Shortfall]) -> QuotaExceeded:
    """The refusal: which limits, by how much, and who can do what about it."""
    order = list(_TITLES)
    short = tuple(sorted(over, key=lambda one: (one.of == "domain", order.index(one.counter))))
    said = [
        f"{one.of} {one.name} may have {one.limit} {_TITLES[one.counter]}, has {one.used}, and this asks for "
        f"{one.asked} more"
        for one in short
    ]
    least = "; ".join(
        f"{one.used + one.asked - one.limit} {_TITLES[one.counter]} less, or a limit of {one.used + one.asked} for "
        f"{one.of} {one.name}"
        for one in short
    )
    raised = {(one.of, one.name): "" for one in short}
    for one in short:
        raised[one.of, one.name] += f" --{one.counter.replace('_', '-')} {one.used + one.asked}"
    ways = [
        f"skerry quota set {name}{flags}" if of == "project" else f"skerry quota set --domain {name}{flags}"
        for (of, name), flags in raised.items()
    ]
    return QuotaExceeded(
        "; ".join(said),
        shortfalls=short,
        fix=f"delete what is not needed, or have an operator raise the limit: {' && '.join(ways)}",
        refusal=Refusal(summary="; ".join(said), smallest_change=least),
    )


# --- limits -------------------------------------------------------------------------------------------------------


def apply_write(tx: Tx, write: SetLimits | DropAccount | Recharge | Recount) -> None:
    """Apply what planners and auditors ask for."""
    match write:
        case SetLimits():
            _set_limits(tx, write)
        case DropAccount():
            tx.run(delete(tables.quota).where(tables.quota.c.account == write.account))
        case Recharge():
            _recharge(tx, write)
        case Recount():
            _recount(tx)


def _set_limits(tx: Tx, wanted: SetLimits) -> None:
    c, wrong = tables.quota.c, wanted.instead_of
    rows = tx.run(select(c.counter, c.ceiling).where(c.account == wanted.account)) if wrong is not None else ()
    there = {row.counter: row.ceiling for row in rows}
    for name, ceiling in wanted.limits.items():
        if wrong is not None and name in there and there[name] != wrong.get(name):
            continue
        values = {"account": wanted.account, "counter": name, "ceiling": ceiling, "parent": wanted.parent}
        tx.run(_SET_LIMIT, values)


def _recharge(tx: Tx, wanted: Recharge) -> None:
    c = tables.resource.c
    there = tx.run(
        update(tables.resource)
        .where(c.id == wanted.resource, c.counts == to_json(wanted.counted).decode())
        .values(counts=to_json(wanted.counts).decode(), revision=tx.revision)
    ).rowcount
    row = tx.resource(wanted.resource)
    if not there or row is None:
        raise Conflict(f"{wanted.resource} changed meanwhile")
    tx.put(row)


# --- recount ------------------------------------------------------------------------------------------------------


def standings(tx: Tx) -> tuple[Standing, ...]:
    """Return every counter of every account, with what the things in it count: all of one state of the database."""
    q, r = tables.quota.c, tables.resource.c
    books = {(row.account, row.counter): row for row in tx.run(select(tables.quota).order_by(q.account, q.counter))}
    parents = {account: row.parent for (account, _), row in books.items() if row.parent}
    counted: dict[tuple[str, str], int] = {}
    # Things of one shape have the same text: the database adds them up, and few rows come back.
    shapes = select(r.project, r.counts, func.count().label("many")).where(r.counts != "{}")
    for row in tx.run(shapes.group_by(r.project, r.counts)):
        account = project_account(row.project)
        for name, amount in from_json(row.counts, dict[str, int], f"what project {row.project} counts").items():
            for owner in (account, parents.get(account)):
                if owner:
                    counted[owner, name] = counted.get((owner, name), 0) + row.many * amount
    return tuple(
        Standing(
            account=account,
            counter=name,
            used=books[account, name].used if (account, name) in books else 0,
            counted=counted.get((account, name), 0),
            ceiling=books[account, name].ceiling if (account, name) in books else None,
            parent=parents.get(account, ""),
        )
        for account, name in sorted({*books, *counted})
    )


def _recount(tx: Tx) -> None:
    for one in standings(tx):
        if one.used != one.counted:
            values = {"account": one.account, "counter": one.counter, "used": one.counted, "parent": one.parent}
            tx.run(_SET_USED, values)

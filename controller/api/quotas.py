"""Quotas in the API: what a project or domain uses of its limits, and whether that is true."""

import msgspec
from aiohttp import web

from common.kinds.kind import AnyKind
from controller.api.call import Call, Handler
from controller.api.ports import Store
from controller.api.preview import known_domain
from controller.api.query import refuse_unknown
from controller.api.render import answer
from controller.api.resources import found
from controller.auth.caller import require_everywhere
from controller.kinds.quotas import Standard, Use, uses_of
from controller.store.rows import Standing
from controller.store.working import WorkingSet


class QuotaView(msgspec.Struct, frozen=True, kw_only=True):
    """How every counter of a project or domain stands."""

    of: str
    """`project` or `domain`."""
    name: str
    items: tuple[Use, ...]
    domain: str
    """The project's domain; empty for a domain, and where the caller may not know of it."""
    domain_items: tuple[Use, ...]
    """Those counters that the domain limits, for all of its projects together."""


class Miscounted(msgspec.Struct, frozen=True, kw_only=True):
    """A counter whose books differ from a recount."""

    of: str
    name: str
    counter: str
    used: int
    """By the books."""
    counted: int


class QuotaAudit(msgspec.Struct, frozen=True, kw_only=True):
    """What a recount of all quotas found just now."""

    counters: int
    """That were counted anew."""
    items: tuple[Miscounted, ...]


class Quotas:
    """The handlers."""

    def __init__(self, store: Store, standard: Standard) -> None:
        self._store = store
        self._standard = standard

    def of(self, kind: AnyKind) -> Handler:
        """Return the handler that shows the quota of a thing of this kind."""

        async def show(call: Call) -> web.Response:
            refuse_unknown(call.request.query, ())
            seen = self._store.seen
            row = found(seen, call, kind)
            domain = known_domain(row, seen, call.caller)
            limited = tuple(one for one in uses_of(domain, seen, {}) if one.limit is not None) if domain else ()
            return answer(
                QuotaView(
                    of=kind.name,
                    name=row.name,
                    items=uses_of(row, seen, self._standard),
                    domain=domain.name if domain else "",
                    domain_items=limited,
                )
            )

        return show

    async def audit(self, call: Call) -> web.Response:
        """Count anew, on one state of the database."""
        refuse_unknown(call.request.query, ())
        require_everywhere(call.caller, "project.quota", "a recount of quotas")
        standings = await self._store.standings()
        return answer(
            QuotaAudit(
                counters=len(standings),
                items=tuple(_miscounted(one, self._store.seen) for one in standings if one.used != one.counted),
            )
        )


def _miscounted(one: Standing, seen: WorkingSet) -> Miscounted:
    of, _, name = one.account.partition("/")
    name = seen.name_of(name) if of == "domain" else name
    return Miscounted(of=of, name=name, counter=one.counter, used=one.used, counted=one.counted)

"""Why something is not so yet, in words and numbers a tenant understands."""

from typing import Literal

import msgspec


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """One constraint and the number of hosts it rules out."""

    constraint: str
    hosts: int
    detail: str = ""


class Shortfall(msgspec.Struct, frozen=True, kw_only=True):
    """A limit that a request would break: of `limit`, `used` are in use, and `asked` more were asked for."""

    of: Literal["project", "domain"]
    name: str
    """Of the project or the domain."""
    counter: str
    limit: int
    used: int
    asked: int


class Refusal(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why no host fits: what each constraint cost, and the smallest change that would fit.

    A host that breaks two constraints counts under both, so the costs may sum to more than `hosts`.
    """

    summary: str
    hosts: int = 0
    costs: tuple[Cost, ...] = ()
    smallest_change: str = ""

    def behind(self, message: str) -> "Refusal":
        """Return it as the reason why something else waits, which `message` says."""
        return Refusal(summary=f"{message}: {self.summary}", smallest_change=self.smallest_change)

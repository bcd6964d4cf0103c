"""How one certificate authority follows another without anybody noticing: the phases, and what each waits for. Pure.

    settled ──rotate──► sharing ──► overlap ──► switching ──► settled

sharing: every controller fetches the new authority's key, and takes certificates of both. overlap: hosts' certificates
are of the new one, and hosts trust both; the controllers still show certificates of the old one, which hosts that are
behind trust. switching: the controllers show certificates of the new one. settled: the old one's key is destroyed, and
nobody trusts it. Which phase it is, is one fact in the database, changed by compare-and-set: whoever dies, the next
look goes on. (Compare RFC 4210, 4.4, "Root CA key update".)
"""

from collections.abc import Collection, Iterable
from typing import Literal

import msgspec

from common.ids import HostId
from controller.store.rows import JOIN_TOKEN_S, Enrolment

FACT = "succession"

Phase = Literal["settled", "sharing", "overlap", "switching"]


class Succession(msgspec.Struct, frozen=True, kw_only=True):
    """Which authority signs, and which is to follow it. Both by the SHA-256 of their certificates."""

    phase: Phase = "settled"
    current: str
    next: str = ""
    since: float = 0.0
    ready: tuple[str, ...] = ()
    """The controllers that have done what this phase asks of them."""

    @property
    def trusted(self) -> tuple[str, ...]:
        """The authorities whose certificates controllers take."""
        return (self.current, self.next) if self.next else (self.current,)

    @property
    def given(self) -> tuple[str, ...]:
        """The authorities that a host is told to trust."""
        return self.trusted if self.phase in ("overlap", "switching") else (self.current,)

    @property
    def signs(self) -> str:
        """The authority that signs hosts' certificates, and that join tokens carry."""
        return self.next if self.phase in ("overlap", "switching") else self.current

    @property
    def serves(self) -> str:
        """The authority that the controllers' own certificates are of."""
        return self.next if self.phase == "switching" else self.current

    def encode(self) -> str:
        """Return it as a fact's value."""
        return msgspec.json.encode(self).decode()


def decode(value: str) -> Succession | None:
    """Read a fact's value; None: there is none yet."""
    return msgspec.json.decode(value, type=Succession) if value else None


class Behind(msgspec.Struct, frozen=True, kw_only=True):
    """A host that the next phase waits for."""

    host: HostId
    why: str


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How a succession stands."""

    succession: Succession
    hosts: int
    """That have a certificate."""
    behind: tuple[Behind, ...]
    unready: tuple[str, ...]
    """The controllers that have not done yet what the phase asks of them."""


def is_behind(succession: Succession, enrolment: Enrolment) -> bool:
    """Say whether a host should fetch its certificate, and whom to trust, anew."""
    if not enrolment.certificate_serial:
        return False
    return enrolment.authority != succession.signs or set(enrolment.trusts) != set(succession.given)


def behind(
    succession: Succession, enrolments: Iterable[Enrolment], connected: Collection[HostId], now: float
) -> tuple[Behind, ...]:
    """Return the hosts that the end of the overlap waits for, and why.

    One whose certificate ran out is not waited for: it needs a new join token in any case.
    """
    found = []
    for enrolment in enrolments:
        why = _why(succession, enrolment, enrolment.host in connected, now)
        if why:
            found.append(Behind(host=enrolment.host, why=why))
    return tuple(found)


def _why(succession: Succession, enrolment: Enrolment, there: bool, now: float) -> str:
    if _holds_old_token(succession, enrolment, now):
        return f"its join token carries the old authority, and is good for {_span(enrolment.join_expires_at - now)}"
    if not enrolment.certificate_serial or 0 < enrolment.expires_at < now:
        return ""
    if is_behind(succession, enrolment):
        left = _span(enrolment.expires_at - now) if enrolment.expires_at else "an unknown time"
        if there:
            return "is connected, and fetches a certificate of the new authority"
        return f"is not connected; its certificate of the old authority is good for {left}"
    return "" if enrolment.confirmed else "has not shown its new certificate yet"


def _holds_old_token(succession: Succession, enrolment: Enrolment, now: float) -> bool:
    """Say whether a join token is about that was given out before the overlap began."""
    good = enrolment.join_digest and enrolment.join_expires_at > now
    return bool(good) and enrolment.join_expires_at - JOIN_TOKEN_S <= succession.since


def _span(seconds: float) -> str:
    return f"{seconds / 86400:.0f} days" if seconds > 2 * 86400 else f"{max(1, seconds / 3600):.0f} hours"


def advanced(
    succession: Succession, living: Collection[str], waits_for: Collection[Behind], now: float
) -> Succession | None:
    """Return the next phase once all that this one waits for is done; None: not yet, or there is nothing to do."""
    if succession.phase == "settled" or not set(living) <= set(succession.ready):
        return None
    match succession.phase:
        case "sharing":
            return msgspec.structs.replace(succession, phase="overlap", since=now, ready=())
        case "overlap":
            return None if waits_for else msgspec.structs.replace(succession, phase="switching", since=now, ready=())
        case "switching":
            return Succession(current=succession.next, since=now)

"""The errors that cross a border, as types that say who has to act, and the problem document they become.

The caller: Invalid, Unauthenticated, Denied, NotFound, MethodNotAllowed, Conflict, KeyReused, PreconditionRequired,
PreconditionFailed, QuotaExceeded, NoCapacity, TooLarge, UnsupportedMedia, RateLimited.
We, later: Temporary, OutOfSpace.
Nobody, it is a bug: any other exception, which is let out to the top of a loop (the API calls it Internal).
Every message names the thing, the limit and the way out.
"""

from typing import ClassVar

import msgspec

from common.ids import RequestId
from common.refusal import Refusal, Shortfall


class FieldError(msgspec.Struct, frozen=True, kw_only=True):
    """One field of a body that can't be taken."""

    field: str
    message: str


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An RFC 9457 problem document (`application/problem+json`). `code` is stable; `fix` is the way out."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    fix: str = ""
    errors: tuple[FieldError, ...] = ()
    refusal: Refusal | None = None
    shortfalls: tuple[Shortfall, ...] = ()
    request: RequestId | None = None


class SkerryError(Exception):
    """What can be told to a caller. `detail` says what is wrong, `fix` what to do about it."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Something went wrong inside Skerry"
    shortfalls: tuple[Shortfall, ...] = ()

    def __init__(
        self,
        detail: str,
        *,
        fix: str = "",
        errors: tuple[FieldError, ...] = (),
        refusal: Refusal | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.fix = fix
        self.errors = errors
        self.refusal = refusal

    def problem(self, request: RequestId | None = None) -> Problem:
        """Return the problem document for this error."""
        return Problem(
            type=f"urn:skerry:problem:{self.code}",
            title=self.title,
            status=self.status,
            code=self.code,
            detail=self.detail,
            fix=self.fix,
            errors=self.errors,
            refusal=self.refusal,
            shortfalls=self.shortfalls,
            request=request,
        )


class Invalid(SkerryError):
    """The request is malformed or breaks a bound."""

    status, code, title = 400, "invalid", "The request is not valid"


class Unauthenticated(SkerryError):
    """No token, or one that is not known."""

    status, code, title = 401, "unauthenticated", "A valid token is needed"


class Denied(SkerryError):
    """The token's role does not allow this."""

    status, code, title = 403, "denied", "Not allowed"


class NotFound(SkerryError):
    """There is no such thing, or it is not the caller's to see."""

    status, code, title = 404, "not-found", "Not found"


class Conflict(SkerryError):
    """The name is taken, the thing is in use, or it changed meanwhile."""

    status, code, title = 409, "conflict", "In conflict with what exists"


class KeyReused(Conflict):
    """The Idempotency-Key stands for another request."""

    status, code, title = 409, "idempotency-key-reused", "The Idempotency-Key stands for another request"


class PreconditionRequired(SkerryError):
    """A change without If-Match: it could overwrite one that the caller has not seen."""

    status, code, title = 428, "precondition-required", "If-Match is needed"


class PreconditionFailed(SkerryError):
    """If-Match names another generation: the thing changed since the caller looked."""

    status, code, title = 412, "precondition-failed", "It changed meanwhile"


class QuotaExceeded(SkerryError):
    """A quota of the project, or of its domain, does not allow this much. `shortfalls` has the numbers."""

    status, code, title = 403, "quota-exceeded", "The quota is used up"

    def __init__(self, detail: str, *, shortfalls: tuple[Shortfall, ...], fix: str, refusal: Refusal) -> None:
        super().__init__(detail, fix=fix, refusal=refusal)
        self.shortfalls = shortfalls


class NoCapacity(SkerryError):
    """No host fits. `refusal` counts what each constraint cost."""

    status, code, title = 409, "no-capacity", "No host fits"


class TooLarge(SkerryError):
    """A body over the limit."""

    status, code, title = 413, "too-large", "The body is too large"


class RateLimited(SkerryError):
    """The token sends more requests than it may."""

    status, code, title = 429, "rate-limited", "Too many requests"

    def __init__(self, detail: str, *, fix: str = "", retry_after_s: int = 1) -> None:
        super().__init__(detail, fix=fix)
        self.retry_after_s = retry_after_s


class MethodNotAllowed(SkerryError):
    """The address exists, but not with this method."""

    status, code, title = 405, "method-not-allowed", "Not with this method"


class UnsupportedMedia(SkerryError):
    """The body's content type is not one that is read here."""

    status, code, title = 415, "unsupported-media-type", "Another content type is needed"


class Temporary(SkerryError):
    """It would work at another time: try again."""

    status, code, title = 503, "temporary", "Not possible just now"


class OutOfSpace(Temporary):
    """A disk of the controller is full. Nothing of the request is kept."""

    status, code, title = 507, "out-of-space", "The controller's disk is full"


class Internal(SkerryError):
    """A bug in Skerry. The log has it under the request's id; no detail of it leaves the process."""

    status, code, title = 500, "internal", "Something went wrong inside Skerry"


ERRORS: tuple[type[SkerryError], ...] = (
    Invalid, Unauthenticated, Denied, NotFound, MethodNotAllowed, Conflict, KeyReused, PreconditionRequired,
    PreconditionFailed, QuotaExceeded, NoCapacity, TooLarge, UnsupportedMedia, RateLimited, Temporary,
    OutOfSpace, Internal,
)  # fmt: skip
"""Every code that can appear in a problem document, for the reference page and the OpenAPI document."""

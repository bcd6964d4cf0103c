"""What the API answers, as the command reads it: known fields typed, unknown ones passed over.

A controller may be newer than this command. So a resource's spec and status stay what JSON makes of them and are read
by the dotted paths of the kind's columns; what `-o json` prints is the API's own text.
"""

from typing import Any, Literal

import msgspec

from common.refusal import Refusal

Finished = frozenset({"done", "failed", "cancelled"})


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The base of all answers."""


class Shown(Answer, frozen=True):
    """A resource."""

    id: str
    kind: str
    name: str
    project: str = ""
    labels: dict[str, str] = {}
    generation: int = 0
    observed_generation: int = 0
    spec: dict[str, Any] = {}
    status: dict[str, Any] = {}
    owner: str | None = None
    created_at: float = 0
    deleted_at: float | None = None


class StepShown(Answer, frozen=True):
    """One step of an operation's timeline."""

    at: float
    what: str
    host: str = ""
    seconds: float | None = None
    retries: int = 0
    cause: str = ""
    phase: bool = False


class OperationShown(Answer, frozen=True):
    """An operation."""

    id: str
    verb: str
    kind: str
    resource: str
    name: str
    state: Literal["running", "blocked", "done", "failed", "cancelled"]
    project: str = ""
    actor: str = ""
    request: str = ""
    message: str = ""
    progress: float = 0
    why: Refusal | None = None
    created_at: float = 0
    finished_at: float | None = None
    revision: int = 0
    steps: tuple[StepShown, ...] = ()
    steps_dropped: int = 0

    @property
    def subject(self) -> str:
        """Return what it is about: `vm web`."""
        return f"{self.kind} {self.name}"


class One(Answer, frozen=True):
    """A resource as read."""

    resource: msgspec.Raw
    names: dict[str, str] = {}


class Accepted(Answer, frozen=True):
    """A mutation as accepted."""

    resource: msgspec.Raw
    operation: OperationShown
    names: dict[str, str] = {}
    revealed: str = ""
    revealed_before: str = ""
    """The secret went with an answer that was lost: how to get another one."""


class Many(Answer, frozen=True):
    """A page of a list."""

    items: tuple[msgspec.Raw, ...]
    names: dict[str, str] = {}
    next: str | int | None = None
    revision: int = 0


class Revealed(Answer, frozen=True):
    """A secret, shown once."""

    revealed: str


class WhoAmI(Answer, frozen=True):
    """Whom the token stands for."""

    actor: str
    project: str
    role: str
    domain: str = ""
    limited: bool = False
    expires_at: float | None = None
    link_url: str = ""


class LoggedIn(Answer, frozen=True):
    """A session."""

    token: str
    user: str
    expires_at: float


class EventShown(Answer, frozen=True):
    """One line of the event table."""

    seq: int
    at: float
    action: str
    actor: str = ""
    request: str = ""
    kind: str = ""
    name: str = ""
    project: str = ""
    message: str = ""
    result: str = ""


class Told(Answer, frozen=True):
    """What one event of a watch says: only the fields of its own sort are there."""

    revision: int
    resource: msgspec.Raw = msgspec.Raw()
    names: dict[str, str] = {}
    operation: OperationShown | None = None
    id: str = ""
    kind: str = ""
    project: str = ""
    name: str = ""
    why: str = ""


class Audited(Answer, frozen=True):
    """What the last audit of one host found."""

    host: str
    at: float | None = None
    differences: int = 0


class Audits(Answer, frozen=True):
    """What the audits of all hosts found."""

    differences: int
    since: float | None = None
    hosts: tuple[Audited, ...] = ()


class Head(Answer, frozen=True):
    """The last event of the chain."""

    seq: int
    hash: str


class Verified(Answer, frozen=True):
    """Whether history is as it was written."""

    intact: bool
    events: int
    head: Head
    first_bad: int | None = None
    problem: str = ""


def shown(raw: msgspec.Raw) -> Shown:
    """Return a resource's fields from its JSON."""
    return msgspec.json.decode(raw, type=Shown)

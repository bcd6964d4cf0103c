"""The descriptor of a kind: one declaration for routes, CLI, permissions, OpenAPI and reference pages."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from functools import cache
from typing import Annotated, Any, Generic, TypeVar, cast, get_args, get_type_hints

import msgspec

from common.counters import Counter
from common.ids import Id, Revision
from common.refusal import Refusal


class Role(IntEnum):
    """The built-in roles. Each may do what those before it may; a descriptor says which is the least for an action."""

    READER = 1
    MEMBER = 2
    ADMIN = 3

    @classmethod
    def named(cls, name: str) -> "Role":
        """Return the role of that lower-case name."""
        return cls[name.upper()]


class Scope(StrEnum):
    """Whether things of a kind belong to one project, or to the cloud as a whole (its operators change them)."""

    PROJECT = "project"
    CLOUD = "cloud"


SYSTEM_PROJECT = "system"
"""Tokens of this project speak for the cloud's operators: admin here is admin everywhere."""

# `$` alone would let one newline pass at the end (Python's re), and a name goes into other programs' files.
Name = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?$(?!\n)",
        max_length=63,
        description="lower-case letters, digits and dashes, a letter first: it is a host name",
        examples=["web"],
    ),
]

Labels = Annotated[
    dict[
        Annotated[
            str,
            msgspec.Meta(
                pattern=r"^[a-z0-9](?:[a-z0-9._/-]{0,61}[a-z0-9])?$(?!\n)",
                max_length=63,
                description="lower-case letters, digits and any of ._/- between them",
            ),
        ],
        Annotated[str, msgspec.Meta(max_length=255)],
    ],
    msgspec.Meta(max_length=64, description="free key=value pairs to filter by"),
]

Quota = Annotated[
    dict[
        Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]{0,31}$(?!\n)", max_length=32)],
        Annotated[int, msgspec.Meta(ge=0, le=1 << 53)] | None,
    ],
    msgspec.Meta(max_length=64),
]
"""Limits by counter; None: no limit."""


@dataclass(frozen=True)
class Ref:
    """Marks a spec field (in Annotated) that names a thing of another kind. Users write name or id; ids are stored."""

    kind: str
    holds: bool = True
    """Whether what is named can't be deleted while it is; else it goes, and what named it lets go of it."""


@dataclass(frozen=True)
class ServerSet:
    """Marks a spec field (in Annotated) that only Skerry sets: a verb, an upload, a planner. Refused in bodies."""


@dataclass(frozen=True)
class Counts:
    """Marks a spec field (in Annotated) that numbers wishes. What is cancelled keeps its number, so that none ever
    stands for two: a host that was away would take the second for the one it has carried out."""


@dataclass(frozen=True)
class Private:
    """Marks a field of a spec or status (in Annotated) that is shown only to those who may change the thing, and is in
    no event."""


class Spec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a user wants. Every field has a description and its bounds in `msgspec.Meta`."""


class Status(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was last seen, for people. Nothing reads it to decide."""

    state: str = "accepted"
    message: str = ""
    why: Refusal | None = None


S = TypeVar("S", bound=Spec)
T = TypeVar("T", bound=Status)


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of the kind's list: a dotted path into the resource (`spec.size`, `status.address`, `name`)."""

    title: str
    path: str


class Nothing(Spec, frozen=True):
    """What a verb takes that takes nothing."""


@dataclass(frozen=True, kw_only=True)
class Verb:
    """A one-shot wish, made into state. `POST …/{name}/{verb}`, with what it takes as the body."""

    name: str
    summary: str
    change: Callable[[Any, Any], Any]
    """(spec, what it takes) -> the spec that says it."""
    takes: type[Spec] = Nothing
    """Flags of its command, and body: described and bounded like a spec."""
    example: str = ""
    """Flags of an example, behind the command and a name."""
    final: bool = False
    """It can't be taken back: it destroys."""
    role: Role = Role.MEMBER
    restores: bool = False
    """Whether it is for what was deleted and is kept, and only for that."""


@dataclass(frozen=True, kw_only=True)
class Extra:
    """A route and a command of one kind that is neither CRUD nor a verb: a console, an upload, a log, an audit.

    The controller wires a handler for each (controller/api/extras.py), the CLI a command (controller/cli/extras.py);
    a gate test fails where either is missing.
    """

    name: str
    method: str
    summary: str
    role: Role
    accepts: str = ""
    returns: str = "application/json"


WHY = Extra(name="why", method="GET", summary="Explain why it is not as wished.", role=Role.READER)
"""Of kinds that live on one host: another controller may have to be asked what that host said."""


@dataclass(frozen=True, kw_only=True)
class Kind(Generic[S, T]):
    """One type of resource. Adding one is its file here, its planner in controller/kinds and a line in KINDS."""

    name: str
    plural: str
    prefix: str
    scope: Scope
    spec: type[S]
    status: type[T]
    summary: str
    example: str
    columns: tuple[Column, ...]
    verbs: tuple[Verb, ...] = ()
    extras: tuple[Extra, ...] = ()
    read: Role = Role.READER
    create: Role | None = Role.MEMBER
    change: Role | None = Role.MEMBER
    delete: Role | None = Role.MEMBER
    fixed: frozenset[str] = frozenset()
    """Spec fields that a PATCH can't change; the message says to make a new one."""
    shared: bool = False
    """Things of this kind may be `public`: visible (not changeable) from every project."""
    counters: tuple[Counter, ...] | None = None
    """What a thing of this kind uses up of its project's quota; `()`: nothing. A gate test fails while neither is said.
    Of one counter each thing is one; how much it is of several, its planner's `counts` says."""
    keeps: bool = False
    """Deleted things of this kind are kept for as long as their project says (`spec.kept_until`), and can be restored
    by a verb that `restores`."""
    reveals: str = ""
    """What creating one shows once and never again: the CLI prints it under this title."""


class Resource(msgspec.Struct, Generic[S, T], frozen=True, kw_only=True):
    """One thing as it stands in the store, in memory and (rendered) in the API."""

    id: Id
    kind: str
    project: str
    """The project's name; empty for things of the cloud."""
    name: str
    labels: dict[str, str]
    generation: int
    """Counts changes of spec, from 1."""
    observed_generation: int
    """The generation that was last made true."""
    spec: S
    status: T
    owner: Id | None
    """The resource that made this one and takes it along when it goes (a VM its root volume)."""
    created_at: float
    deleted_at: float | None
    """When deletion was accepted; None while wanted."""
    revision: Revision
    counts: dict[str, int] = {}
    """What it uses up of its project's quota, by counter, from when it is accepted until it is gone. What belongs to
    another thing counts with that one."""


AnyKind = Kind[Any, Any]
AnyResource = Resource[Any, Any]


def kept_until(row: AnyResource) -> float:
    """Return until when a deleted thing is kept to be restored; 0 for one that is wanted, or goes for good."""
    return float(getattr(row.spec, "kept_until", 0.0)) if row.deleted_at is None else 0.0


@dataclass(frozen=True)
class Field:
    """A spec field as everything generated sees it."""

    name: str
    type: Any
    description: str
    ref: str | None
    holds: bool
    server_set: bool
    counts: bool
    private: bool
    required: bool
    default: Any


def fields(spec: type[Spec | Status]) -> tuple[Field, ...]:
    """Return the fields of a spec, in order, with their marks and descriptions."""
    return _fields(cast(Any, spec))


@cache
def _fields(spec: Any) -> tuple[Field, ...]:
    hints = get_type_hints(spec, include_extras=True)
    found = []
    for field in msgspec.structs.fields(spec):
        marks = _marks(hints[field.name])
        metas = [m for m in marks if isinstance(m, msgspec.Meta)]
        default = field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
        found.append(
            Field(
                name=field.name,
                type=hints[field.name],
                description=next((m.description for m in metas if m.description), ""),
                ref=next((m.kind for m in marks if isinstance(m, Ref)), None),
                holds=all(m.holds for m in marks if isinstance(m, Ref)),
                server_set=any(isinstance(m, ServerSet) for m in marks),
                counts=any(isinstance(m, Counts) for m in marks),
                private=any(isinstance(m, Private) for m in marks),
                required=field.required,
                default=None if default is msgspec.NODEFAULT else default,
            )
        )
    return tuple(found)


def _marks(hint: Any) -> list[Any]:
    """Collect the Annotated marks of a type and of its members (`tuple[Annotated[str, Ref("network")], ...]`)."""
    own = list(getattr(hint, "__metadata__", ()))
    for member in get_args(hint):
        own += _marks(member)
    return own

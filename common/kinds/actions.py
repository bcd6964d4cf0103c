"""Every action there is, made from the descriptors: what roles grant, and what a refusal says is missing."""

from fnmatch import fnmatchcase
from functools import cache

import msgspec

from common.kinds import KINDS
from common.kinds.kind import AnyKind, Role


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that can be done to things of one kind."""

    name: str
    """`vm.start`: the kind, and read, create, change, delete, a verb or an extra."""
    kind: str
    role: Role
    """The least built-in role that may."""
    summary: str


def actions_of(kind: AnyKind) -> tuple[Action, ...]:
    """Return what can be done to things of a kind, by anybody at all."""
    words = (
        ("read", kind.read, f"List and show {kind.plural}, follow them, and read their history."),
        ("create", kind.create, f"Make {kind.plural}."),
        ("change", kind.change, f"Change {kind.plural}, and see what is private of them."),
        ("delete", kind.delete, f"Delete {kind.plural}."),
        *((verb.name, verb.role, verb.summary) for verb in kind.verbs),
        *((extra.name, extra.role, extra.summary) for extra in kind.extras),
    )
    return tuple(
        Action(name=f"{kind.name}.{word}", kind=kind.name, role=role, summary=summary)
        for word, role, summary in words
        if role is not None
    )


ACTIONS: tuple[Action, ...] = tuple(action for kind in KINDS for action in actions_of(kind))


@cache
def matching(pattern: str) -> frozenset[str]:
    """Return the actions that a pattern stands for; none where it is misspelt."""
    return frozenset(action.name for action in ACTIONS if fnmatchcase(action.name, pattern))


LOOKS = frozenset(
    [f"{kind.name}.read" for kind in KINDS]
    + [f"{kind.name}.{extra.name}" for kind in KINDS for extra in kind.extras if extra.method == "GET"]
)
"""Actions that change nothing."""


@cache
def of_role(role: Role) -> frozenset[str]:
    """Return what a built-in role may do."""
    return frozenset(action.name for action in ACTIONS if action.role <= role)

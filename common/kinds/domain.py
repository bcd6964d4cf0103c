"""domain: a tenant of the cloud, with projects, users and roles of its own, which no other domain sees."""

from typing import Annotated

import msgspec

from common.ids import Id
from common.kinds.kind import Column, Extra, Kind, Quota, Role, Scope, Spec, Status

DEFAULT_DOMAIN = Id("dom-000000000000")
"""The domain named `default`, which every cloud has from its first moment: what names no domain belongs to it."""


class DomainSpec(Spec, frozen=True):
    """A tenant."""

    description: Annotated[str, msgspec.Meta(max_length=255, description="whose it is, for people")] = ""
    quota: Annotated[
        Quota,
        msgspec.Meta(
            description="limits for all its projects together, by counter; null, or not named: none",
            examples=[{"vms": 100, "vcpus": 400}],
        ),
    ] = msgspec.field(default_factory=dict)


DOMAIN = Kind(
    name="domain",
    plural="domains",
    prefix="dom",
    scope=Scope.CLOUD,
    spec=DomainSpec,
    status=Status,
    summary="A tenant: projects, users and roles that no other domain sees.",
    example="skerry domain create acme --description 'the Acme company'",
    counters=(),
    columns=(
        Column(title="NAME", path="name"),
        Column(title="STATE", path="status.state"),
        Column(title="DESCRIPTION", path="spec.description"),
    ),
    extras=(Extra(name="quota", method="GET", summary="Show what its projects use, and its limits.", role=Role.ADMIN),),
    create=Role.ADMIN,
    change=Role.ADMIN,
    delete=Role.ADMIN,
)

"""network: a tenant's layer-2 segment with one IPv4 subnet, on whichever hosts need it."""

from typing import Annotated

import msgspec

from common.counters import NETWORKS
from common.kinds.kind import Column, Kind, Scope, Spec, Status


class NetworkSpec(Spec, frozen=True):
    """One subnet. Two projects may use the same addresses."""

    cidr: Annotated[
        str,
        msgspec.Meta(
            pattern=r"^\d{1,3}(?:\.\d{1,3}){3}/\d{1,2}$(?!\n)",
            description="the subnet, /16 to /29; the first address is the gateway",
            examples=["10.20.0.0/24"],
        ),
    ] = "10.20.0.0/24"


class NetworkStatus(Status, frozen=True):
    """What the network holds."""

    vni: int = 0
    ports: int = 0
    hosts: int = 0


NETWORK = Kind(
    name="network",
    plural="networks",
    prefix="net",
    scope=Scope.PROJECT,
    spec=NetworkSpec,
    status=NetworkStatus,
    summary="A private network: addresses by DHCP, names by DNS, the same gateway on every host.",
    example="skerry network create backend --cidr 10.30.0.0/24",
    counters=(NETWORKS,),
    columns=(
        Column(title="NAME", path="name"),
        Column(title="STATE", path="status.state"),
        Column(title="CIDR", path="spec.cidr"),
        Column(title="VNI", path="status.vni"),
        Column(title="PORTS", path="status.ports"),
        Column(title="HOSTS", path="status.hosts"),
    ),
    change=None,
    fixed=frozenset({"cidr"}),
)

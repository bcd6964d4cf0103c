"""host: a physical machine with an agent."""

from typing import Annotated

import msgspec

from common.kinds.kind import Column, Extra, Kind, Private, Ref, Role, Scope, ServerSet, Spec, Status


class HostSpec(Spec, frozen=True):
    """How a machine may be used. What it has is found by its agent and shown in the status."""

    schedulable: Annotated[bool, msgspec.Meta(description="whether new machines may be placed on it")] = True
    rack: Annotated[str | None, Ref("rack"), msgspec.Meta(description="the rack it stands in")] = None
    zone: Annotated[
        str | None, Ref("zone"), msgspec.Meta(description="the zone it is in, where it stands in no rack")
    ] = None
    cpu_overcommit: Annotated[
        float, msgspec.Meta(ge=0.1, le=64, description="vCPUs that may be sold per hardware thread")
    ] = 4.0
    memory_overcommit: Annotated[
        float, msgspec.Meta(ge=0.1, le=4, description="memory that may be sold per memory built in")
    ] = 1.0
    reserved_memory_mib: Annotated[
        int, msgspec.Meta(ge=0, le=1 << 24, description="memory kept for the machine itself, MiB")
    ] = 512
    pool_watermark_percent: Annotated[
        int,
        msgspec.Meta(
            ge=1,
            le=100,
            description="how full its pool, or a thin pool's metadata, may be before it takes no more volumes, percent",
        ),
    ] = 85
    closed_by_pool: Annotated[
        bool, ServerSet(), msgspec.Meta(description="whether it takes no more volumes since its pool reached that")
    ] = False


class HostStatus(Status, frozen=True):
    """What the agent reported when it last said hello."""

    address: Annotated[str, Private()] = ""
    """Where other hosts reach it: the VXLAN tunnel endpoint."""
    agent_version: str = ""
    cpu_model: str = ""
    cpu_level: str = ""
    """The highest level of x86-64 that it can give guests; empty: its agent has not said."""
    cpu_flags: tuple[str, ...] = ()
    """All that it can give guests, by libvirt's names."""
    capabilities: tuple[str, ...] = ()
    """What its agent found to work."""
    cpu_threads: int = 0
    memory_mib: int = 0
    disk_gib: int = 0
    virtualisation: str = ""
    """`kvm`, or `tcg` where the CPU lacks svm/vmx."""
    rack: str = ""
    """The rack's name."""
    zone: str = ""
    """The name of its zone, which is its rack's where it stands in one."""
    sells_vcpus: int = 0
    """What it may sell in all: what it has, times its overcommit ratio."""
    sold_vcpus: int = 0
    sells_memory_mib: int = 0
    sold_memory_mib: int = 0
    sells_disk_gib: int = 0
    sold_disk_gib: int = 0
    pool_percent: int = 0
    """How full its pool is, by what it last said."""
    pool_metadata_percent: int = 0
    """How full a thin pool's metadata are."""
    pool_closed: str = ""
    """Why it takes no more volumes; empty: it does."""
    vms: int = 0
    last_seen_at: float = 0


HOST = Kind(
    name="host",
    plural="hosts",
    prefix="host",
    scope=Scope.CLOUD,
    spec=HostSpec,
    status=HostStatus,
    summary="A physical machine with an agent. Creating one gives the one-time token with which it joins.",
    example="skerry host create h1",
    counters=(),
    columns=(
        Column(title="NAME", path="name"),
        Column(title="STATE", path="status.state"),
        Column(title="ADDRESS", path="status.address"),
        Column(title="THREADS", path="status.cpu_threads"),
        Column(title="MEMORY MIB", path="status.memory_mib"),
        Column(title="DISK GIB", path="status.disk_gib"),
        Column(title="POOL %", path="status.pool_percent"),
        Column(title="RACK", path="status.rack"),
        Column(title="ZONE", path="status.zone"),
        Column(title="VMS", path="status.vms"),
        Column(title="VIRT", path="status.virtualisation"),
        Column(title="MESSAGE", path="status.message"),
    ),
    extras=(
        Extra(name="token", method="POST", summary="Give a new one-time join token.", role=Role.ADMIN),
        Extra(
            name="metrics", method="GET", summary="Show how busy the host was, over any span of time.", role=Role.READER
        ),
        Extra(name="audit", method="GET", summary="Compare wish and reality on the host.", role=Role.READER),
        Extra(name="repair", method="POST", summary="Repair what an audit of the host finds.", role=Role.ADMIN),
    ),
    create=Role.ADMIN,
    change=Role.ADMIN,
    delete=Role.ADMIN,
    reveals="join token",
)

"""Counters: what quotas limit. A kind names those that its things use up; several kinds may share one."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Counter:
    """One thing that is counted for each project and each domain, and may have a limit there."""

    name: str
    """In the API, in flags and in the configuration."""
    title: str
    """In sentences: `there are 4 of 10 machines`."""
    summary: str
    """What is counted, and from when to when where that is not plain."""


VCPUS = Counter(name="vcpus", title="vCPUs", summary="virtual CPUs of machines, stopped ones too")
MEMORY_MIB = Counter(name="memory_mib", title="MiB of memory", summary="memory of machines, stopped ones too, MiB")
DISK_GIB = Counter(
    name="disk_gib", title="GiB of disk", summary="size of volumes, root disks included, and of their snapshots, GiB"
)
VMS = Counter(name="vms", title="machines", summary="machines, stopped ones too")
VOLUMES = Counter(name="volumes", title="volumes", summary="volumes; each machine has one for its root disk")
SNAPSHOTS = Counter(name="snapshots", title="snapshots", summary="snapshots of volumes")
NETWORKS = Counter(name="networks", title="networks", summary="networks")
ADDRESSES = Counter(name="addresses", title="addresses", summary="addresses of machines: one for each NIC")
IMAGES = Counter(name="images", title="images", summary="images, those without content too")
IMAGE_GIB = Counter(
    name="image_gib", title="GiB of images", summary="size of images as uploaded, each rounded up to whole GiB"
)
GROUPS = Counter(name="groups", title="groups", summary="groups of machines that belong together, or apart")
SCHEDULES = Counter(name="schedules", title="schedules", summary="schedules that start and stop machines")
KEYPAIRS = Counter(name="keypairs", title="keypairs", summary="public SSH keys")
TOKENS = Counter(name="tokens", title="tokens", summary="bearer tokens")

"""The agent's configuration: one TOML file, a frozen struct a section, every key described here and nowhere else."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from common.settings import Section, load_settings

DEFAULT_PATH = Path("/etc/skerry/agent.toml")


class AgentSection(Section, frozen=True):
    """Where the agent keeps its own files."""

    state_dir: Annotated[
        str,
        msgspec.Meta(
            min_length=1,
            description="directory of the identity, the documents, the image cache and the serial logs",
        ),
    ] = "/var/lib/skerry-agent"
    run_dir: Annotated[
        str,
        msgspec.Meta(min_length=1, description="directory of what need not outlive a reboot, such as dnsmasq's files"),
    ] = "/run/skerry-agent"


class UnderlaySection(Section, frozen=True):
    """The network between the hosts, which carries the tunnels."""

    address: Annotated[
        str,
        msgspec.Meta(
            description="address other hosts tunnel to (VTEP); empty: the source address of the route to the controller"
        ),
    ] = ""


class LibvirtSection(Section, frozen=True):
    """The hypervisor."""

    uri: Annotated[str, msgspec.Meta(min_length=1, description="libvirt connection URI")] = "qemu:///system"


class PoolSection(Section, frozen=True):
    """Where volumes lie: in a thin pool where a volume group is named, else in files."""

    path: Annotated[
        str, msgspec.Meta(description="directory for volumes, made 0711; empty: `volumes` in `state_dir`")
    ] = ""
    volume_group: Annotated[
        str,
        msgspec.Meta(
            pattern=r"^(?:[A-Za-z0-9_+.][A-Za-z0-9_+.-]*)?$(?!\n)",
            max_length=100,
            description="LVM volume group with a thin pool for volumes; empty: files in `path`",
        ),
    ] = ""
    thin_pool: Annotated[
        str,
        msgspec.Meta(
            pattern=r"^[A-Za-z0-9_+.][A-Za-z0-9_+.-]*$(?!\n)",
            max_length=100,
            description="the thin pool's name in that group",
        ),
    ] = "skerry"


class LogSection(Section, frozen=True):
    """What is written to standard error: JSON lines, or colours on a terminal."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], msgspec.Meta(description="the least important line to write")
    ] = "info"


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    agent: AgentSection = AgentSection()
    underlay: UnderlaySection = UnderlaySection()
    libvirt: LibvirtSection = LibvirtSection()
    pool: PoolSection = PoolSection()
    log: LogSection = LogSection()

    @property
    def state_dir(self) -> Path:
        """The directory that holds all the agent must not lose."""
        return Path(self.agent.state_dir)

    @property
    def run_dir(self) -> Path:
        """The directory for what need not outlive a reboot."""
        return Path(self.agent.run_dir)

    @property
    def identity_path(self) -> Path:
        """The file that says who this host is."""
        return self.state_dir / "identity.pem"

    @property
    def memory_path(self) -> Path:
        """The file of the documents."""
        return self.state_dir / "memory.db"

    @property
    def pool_path(self) -> Path:
        """The directory of the volumes."""
        return Path(self.pool.path) if self.pool.path else self.state_dir / "volumes"


def load(path: Path) -> Config:
    """Read the file; where the default one does not exist, every default holds. Raises Invalid with the way out."""
    if path == DEFAULT_PATH and not path.exists():
        return Config()
    return load_settings(path, Config)

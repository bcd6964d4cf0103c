"""Where a lab's things are and what they are called: paths under build/lab/NAME, namespaces, addresses. Pure."""

import hashlib
import re
from pathlib import Path

import msgspec

from common.errors import Invalid

ROOT = Path(__file__).resolve().parent.parent
LAB_MARK = "SKERRY_LAB"
"""Every process of a lab has this in its environment, with the lab's folder: so that `make down` finds them all."""
HOST_MARK = "SKERRY_LAB_HOST"
"""And every process of a host this, with the host's folder."""
LINK_PORT = 8443
CONTROLLER_ADDRESS = "10.77.0.1"
MOST_HOSTS = 64
_LONGEST = 16


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """One lab of one checkout. Two labs share no name, path or address that could meet."""

    name: str
    root: Path = ROOT

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9-]*", self.name):
            raise Invalid(
                f"a lab's name is lower-case letters, digits and dashes, not {self.name!r}: make up NAME=demo"
            )

    @property
    def folder(self) -> Path:
        """Return the folder that holds everything this lab writes."""
        return self.root / "build" / "lab" / self.name

    @property
    def logs(self) -> Path:
        """Return the folder of the logs of everything this lab runs."""
        return self.folder / "log"

    @property
    def controller(self) -> Path:
        """Return the controller's folder: its configuration and state."""
        return self.folder / "controller"

    @property
    def cli_config(self) -> Path:
        """Return the configuration of the lab's own `skerry` command."""
        return self.folder / "cli.toml"

    @property
    def skerry(self) -> Path:
        """Return the lab's own `skerry` command."""
        return self.folder / "bin" / "skerry"

    def host(self, host: str) -> Path:
        """Return a host's folder: its disk, as it were."""
        return self.folder / "hosts" / host

    @property
    def underlay(self) -> str:
        """Return the name of the namespace that holds the wire between the hosts."""
        return f"{self._prefix}-underlay"

    def namespace(self, host: str) -> str:
        """Return the name of a host's network namespace."""
        return f"{self._prefix}-{host}"

    def owns(self, namespace: str) -> bool:
        """Tell whether a namespace's name is one of this lab's."""
        return re.fullmatch(rf"{re.escape(self._prefix)}-(?:underlay|h\d+)", namespace) is not None

    @property
    def _prefix(self) -> str:
        short = self.name
        if len(short) > _LONGEST:
            short = f"{short[:8]}-{hashlib.sha256(short.encode()).hexdigest()[:6]}"
        return f"skerry-{short}"


def host_names(count: int) -> list[str]:
    """Return the names of a lab's hosts: h1, h2, …; raise Invalid for a number that a lab can't have."""
    if not 1 <= count <= MOST_HOSTS:
        raise Invalid(f"a lab has 1 to {MOST_HOSTS} hosts, not {count}: make up HOSTS=3")
    return [f"h{number}" for number in range(1, count + 1)]


def address(host: str) -> str:
    """Return a host's address on the underlay: h1 is 10.77.0.11, h2 10.77.0.12, …"""
    return f"10.77.0.{10 + int(host.removeprefix('h'))}"

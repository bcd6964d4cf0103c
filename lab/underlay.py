"""The wire between a lab's hosts: a namespace with a bridge, a port per host. The machine's network stays as it is."""

from common.errors import Conflict
from lab.commands import run, succeeds
from lab.layout import CONTROLLER_ADDRESS, Layout, address
from lab.processes import NETNS, end, in_namespace

BRIDGE = "br0"
NIC = "eth0"


def ensure_underlay(layout: Layout) -> bool:
    """Make the underlay unless it is there; tell whether it was made. Raises Conflict: another checkout's lab."""
    if (NETNS / layout.underlay).exists():
        owner = _owner(layout.underlay)
        if owner and owner != str(layout.folder):
            raise Conflict(
                f"a lab called {layout.name!r} runs already, from {owner}",
                fix="choose another name (make up NAME=other), or `make down` over there",
            )
        if owner:
            return False
        remove_namespace(layout.underlay)
    run(["ip", "netns", "add", layout.underlay])
    _batch(
        layout.underlay,
        "link set lo up",
        f"link add {BRIDGE} type bridge forward_delay 0 mcast_snooping 0",
        f"addr add {CONTROLLER_ADDRESS}/24 dev {BRIDGE}",
        f"link set {BRIDGE} up",
    )
    # Last, since it is what tells a finished underlay from a half-made one. A batch would split it at spaces.
    run(["ip", "-n", layout.underlay, "link", "set", BRIDGE, "alias", str(layout.folder)])
    return True


def port(host: str) -> str:
    """Return the name of the underlay's end of a host's wire."""
    return f"p-{host}"


def ensure_wire(layout: Layout, host: str) -> None:
    """Make a host's network namespace and plug it into the underlay, unless that is so already."""
    namespace = layout.namespace(host)
    if not (NETNS / namespace).exists():
        run(["ip", "netns", "add", namespace])
    if not succeeds(["ip", "-n", namespace, "link", "show", NIC]):
        run(["ip", "-n", layout.underlay, "link", "add", port(host), "type", "veth", "peer", NIC, "netns", namespace])
    _batch(layout.underlay, f"link set {port(host)} master {BRIDGE}", f"link set {port(host)} up")
    _batch(namespace, "link set lo up", f"addr replace {address(host)}/24 dev {NIC}", f"link set {NIC} up")


def remove_wire(layout: Layout, host: str) -> None:
    """Remove a host's namespace with all its devices. Whoever still runs in it is killed."""
    # The veth goes first: a namespace dies some time after its name does, and the port would linger as long.
    if (NETNS / layout.underlay).exists():
        succeeds(["ip", "-n", layout.underlay, "link", "del", port(host)])
    remove_namespace(layout.namespace(host))


def remove_namespace(name: str) -> None:
    """Kill what runs in a namespace and remove it; nothing to do when there is none."""
    end(in_namespace(name))
    if (NETNS / name).exists():
        run(["ip", "netns", "del", name])


def lab_namespaces(layout: Layout) -> list[str]:
    """Return this lab's namespaces, the underlay last; none when those of its name are another checkout's."""
    if not NETNS.exists() or _lab_owner(layout) not in ("", str(layout.folder)):
        return []
    found = sorted(path.name for path in NETNS.iterdir() if layout.owns(path.name))
    return sorted(found, key=lambda name: name == layout.underlay)


def _lab_owner(layout: Layout) -> str:
    """Return the folder of the lab to which this lab's underlay belongs: its own, or another checkout's."""
    return _owner(layout.underlay) if (NETNS / layout.underlay).exists() else ""


def _owner(namespace: str) -> str:
    listing = run(["ip", "-n", namespace, "-d", "link"])
    for line in listing.splitlines():
        if line.strip().startswith("alias "):
            return line.strip().removeprefix("alias ")
    return ""


def _batch(namespace: str, *lines: str) -> None:
    run(["ip", "-n", namespace, "-batch", "-"], stdin="".join(f"{line}\n" for line in lines))

"""What is left of a lab on the machine, named one by one. `make down` is done when this finds nothing."""

from pathlib import Path

from lab.commands import run
from lab.layout import LAB_MARK, Layout
from lab.processes import command_of, in_namespace, marked
from lab.underlay import lab_namespaces, port

COMMAND = Path("/usr/local/bin/skerry")


def traces(layout: Layout) -> list[str]:
    """Return a line for every process, namespace, interface, mount and file that still belongs to a lab."""
    folder = str(layout.folder)
    namespaces = lab_namespaces(layout)
    pids = marked(LAB_MARK, folder)
    for name in namespaces:
        pids |= in_namespace(name)
    found = [f"process {pid}: {command_of(pid)}" for pid in sorted(pids)]
    found += [f"namespace {name}" for name in namespaces]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    words = (f"{folder}/", *(f"/{name} " for name in namespaces))
    found += [f"mount {line.split()[4]}" for line in mounts if any(word in line for word in words)]
    ports = {port(f"h{number}") for number in range(1, 100)}
    found += [f"interface {name}" for name in interfaces() if name in ports]
    if layout.folder.exists():
        found.append(f"folder {folder}")
    if COMMAND.is_symlink() and COMMAND.readlink() == layout.skerry:
        found.append(f"link {COMMAND}")
    return found


def interfaces() -> list[str]:
    """Return the names of the machine's own network interfaces."""
    lines = run(["ip", "-o", "link"]).splitlines()
    return [line.split(": ")[1].partition("@")[0] for line in lines]

"""What guests' TPMs hold, as swtpm keeps it below libvirt's directory: whose it is, begun anew, removed.

libvirt knows it by the domain's UUID: `<uuid>/tpm2/`. A note of ours beside that says whose it is and which disk it
goes with, so that a disk which is made anew gets a TPM that holds nothing of before.
"""

from collections.abc import Iterator
from pathlib import Path

from agent.drivers import files
from common import names
from common.ids import Id, is_id
from common.protocol import Found

TPMS = Path("/var/lib/libvirt/swtpm")
"""Where libvirtd keeps them: compiled in, and in nobody's configuration."""

LOGS = Path("/var/log/swtpm/libvirt/qemu")
"""Likewise what swtpm says. libvirt never removes it."""

_NOTE = "skerry"
_LOG = "-swtpm.log"


class Tpms:
    """The two directories. All is quick, and blocks."""

    def __init__(self, folder: Path = TPMS, logs: Path = LOGS) -> None:
        self._folder, self._logs = folder, logs

    def left_of(self, vm: Id) -> tuple[Path, ...]:
        """Return what there is of a machine's TPM."""
        kept = (self._folder / names.domain_uuid(vm), self._logs / f"{names.domain_name(vm)}{_LOG}")
        return tuple(path for path in kept if path.exists())

    def disk_of(self, vm: Id) -> Id | None:
        """Return the disk that what it holds goes with; None: it holds nothing."""
        note = _read(self._folder / names.domain_uuid(vm))
        return note[1] if note else None

    def renew(self, vm: Id, disk: Id) -> None:
        """Have a machine that is off find a TPM at its start that holds nothing, and goes with this disk."""
        folder = self._folder / names.domain_uuid(vm)
        # The old note goes last: until then it is known to be old.
        for path in folder.glob("*"):
            if path.name != _NOTE:
                files.remove(path)
        for path in (self._folder, folder):
            path.mkdir(parents=True, exist_ok=True, mode=0o711)
        part = folder / names.part(_NOTE)
        part.write_text(f"{vm} {disk}\n")
        files.publish(part, folder / _NOTE)

    def survey(self) -> Iterator[Found]:
        """List what there is."""
        for folder in sorted(self._folder.glob("*")):
            note = _read(folder)
            yield Found(what="file", name=folder.name, owner=note[0] if note else None, detail="TPM")
        for log in sorted(self._logs.glob(f"*{_LOG}")):
            owner = names.owner_of(log.name.removesuffix(_LOG))
            yield Found(what="file", name=log.name, owner=owner, detail="TPM's log")


def _read(folder: Path) -> tuple[Id, Id] | None:
    try:
        vm, _, disk = (folder / _NOTE).read_text().strip().partition(" ")
    except OSError:
        return None
    return (Id(vm), Id(disk)) if is_id(vm, "vm") and is_id(disk, "vol") else None

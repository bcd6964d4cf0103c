"""UEFI, Secure Boot and TPMs: what machines may ask for, what hosts need for it, and how it is said. Pure."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

Firmware = Literal["bios", "uefi", "uefi-secure"]
"""What a machine starts with."""

UEFI, SECURE_BOOT, TPM = "uefi", "secure-boot", "tpm"
"""The capabilities of agents that give guests these, and know the fields of documents that ask for them."""


class Ability(NamedTuple):
    """Such a capability, for people."""

    gives: str
    package: str
    """Debian's, that it comes from."""


ABILITIES = {
    UEFI: Ability("UEFI for guests", "ovmf"),
    SECURE_BOOT: Ability("firmware for Secure Boot", "ovmf"),
    TPM: Ability("TPMs for guests", "swtpm-tools"),
}

_NEEDS: dict[Firmware, frozenset[str]] = {
    "bios": frozenset(),
    "uefi": frozenset({UEFI}),
    "uefi-secure": frozenset({SECURE_BOOT}),
}
_NAMES: dict[Firmware, str] = {"bios": "BIOS", "uefi": "UEFI", "uefi-secure": "UEFI with Secure Boot"}


def abilities(firmware: Firmware, *, tpm: bool) -> frozenset[str]:
    """Return the capabilities that a host needs for a machine with these."""
    return _NEEDS[firmware] | ({TPM} if tpm else frozenset())


def named(lacks: Iterable[str]) -> str:
    """Name capabilities for people."""
    return " and ".join(ABILITIES[one].gives for one in sorted(lacks))


def way_out(lacks: Iterable[str], host: str) -> str:
    """Say how a host comes to have these capabilities."""
    packages = " ".join(sorted({ABILITIES[one].package for one in lacks}))
    return f"on host {host}: apt-get install {packages}, then systemctl restart skerry-agent"


def words(firmware: Firmware, *, tpm: bool) -> str:
    """Say what a machine starts with."""
    return _NAMES[firmware] + (", TPM 2.0" if tpm else "")

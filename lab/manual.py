"""docs/install.md as what is typed: its blocks of commands, each with the machines that they are for.

A block is fenced by ```` ```sh MACHINE... ````. Tests type them as they stand there, so that page and product stay one.
"""

import re
from pathlib import Path

import msgspec

from lab.layout import ROOT

INSTALL = ROOT / "docs" / "install.md"

_HEADING = re.compile(r"^## (.*)$", re.MULTILINE)
_FENCE = re.compile(r"^```sh *([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """Commands that are typed one after the other."""

    heading: str
    machines: tuple[str, ...]
    lines: tuple[str, ...]
    """Without their comments."""


def blocks(page: Path = INSTALL) -> tuple[Block, ...]:
    """Return all blocks of commands of a page, in its order."""
    text = page.read_text()
    headings = [(found.start(), found[1]) for found in _HEADING.finditer(text)]
    return tuple(
        Block(
            heading=max(((at, name) for at, name in headings if at < found.start()), default=(0, ""))[1],
            machines=tuple(found[1].split()),
            lines=tuple(line for raw in found[2].splitlines() if (line := re.sub(r"(^|\s+)#.*", "", raw).rstrip())),
        )
        for found in _FENCE.finditer(text)
    )

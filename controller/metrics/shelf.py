"""The blocks on disk: written, thinned with age, dropped when they are old or too many. Blocks the caller's thread."""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec
import numpy as np
import structlog

from common import names
from common.ids import Id
from controller.metrics import block
from controller.metrics.block import Block, Broken, Chunk, Head, prefix_of
from controller.metrics.catalogue import METRICS, WIDTH, kind_of
from controller.metrics.codec import NONE, Codes
from controller.metrics.intake import SLOT_S, WINDOW_S
from controller.metrics.thin import thin

log = structlog.get_logger(__name__)

RESERVE_BYTES = 256 << 20
"""Of the disk's free room: below it history gives way, for the database may lie on the same disk."""

_NAMES: dict[str, tuple[str, ...]] = {of: tuple(one.name for one in metrics) for of, metrics in METRICS.items()}


class Tier(msgspec.Struct, frozen=True, kw_only=True):
    """Blocks of one resolution."""

    name: str
    step_s: int
    window_s: int
    planes: int


RAW = Tier(name="raw", step_s=SLOT_S, window_s=WINDOW_S, planes=1)
MINUTE = Tier(name="minute", step_s=60, window_s=3600, planes=2)
HOUR = Tier(name="hour", step_s=3600, window_s=86400, planes=2)
TIERS = (RAW, MINUTE, HOUR)


class Keep(msgspec.Struct, frozen=True, kw_only=True):
    """How long blocks of each tier are kept, and how large they may be together."""

    raw_s: float
    minute_s: float
    hour_s: float
    most_bytes: int

    def of(self, tier: Tier) -> float:
        """Return how long a tier's blocks are kept."""
        return {RAW: self.raw_s, MINUTE: self.minute_s, HOUR: self.hour_s}[tier]


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """One block's file."""

    tier: Tier
    start: int
    path: Path
    size_bytes: int

    @property
    def end(self) -> int:
        """Return the second behind its last point."""
        return self.start + self.tier.window_s


class Shelf:
    """All blocks below one directory. One thread changes it at a time; `kept` and `read` are for any."""

    def __init__(self, directory: Path, keep: Keep) -> None:
        self._root, self._keep = directory, keep
        self.kept: tuple[Kept, ...] = ()
        """Every block, in order."""
        self._sound: set[Path] = set()
        """Whose index was checked by this process."""
        self._told: set[Path] = set()

    @property
    def size_bytes(self) -> int:
        """Return how large all blocks are together."""
        return sum(kept.size_bytes for kept in self.kept)

    def load(self) -> None:
        """See what is there, and remove what a death left unfinished."""
        found = []
        for tier in TIERS:
            directory = self._root / tier.name
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            for path in sorted(directory.iterdir()):
                if path.name.endswith(names.part("")):
                    path.unlink(missing_ok=True)
                elif (start := path.name.partition(".")[0]).isdecimal():
                    found.append(Kept(tier=tier, start=int(start), path=path, size_bytes=path.stat().st_size))
        self.kept = tuple(sorted(found, key=_order))

    def read(self, kept: Kept, thing: Id) -> list[Codes]:
        """Return a thing's rows of today's metrics, (planes, figures, points) from each host that told of it."""
        try:
            with block.opened(kept.path) as opened:
                self._check(kept.path, opened)
                have = opened.head.metrics.get(prefix_of(thing), ())
                return [_as_today(codes, have, thing) for codes in opened.find(thing)]
        except FileNotFoundError:
            return []  # dropped a moment ago
        except (Broken, OSError) as err:
            self._passed_over(kept, err)
            return []

    def _check(self, path: Path, opened: Block) -> None:
        if path not in self._sound:
            opened.check()
            self._sound.add(path)

    def _passed_over(self, kept: Kept, err: Exception) -> None:
        if kept.path not in self._told:
            self._told.add(kept.path)
            log.warning("metrics block passed over", path=str(kept.path), problem=str(err))

    # --- writing ----------------------------------------------------------------------------------------------------

    def write(self, tier: Tier, start: int, chunks: Iterable[Chunk]) -> Kept:
        """Write a block, which is not among those that are kept until it is added.

        Raises OSError where there is no room; then nothing of it is left.
        """
        if shutil.disk_usage(self._root).free < RESERVE_BYTES:
            raise OSError(f"less than {RESERVE_BYTES >> 20} MiB are free on the disk of {self._root}")
        before = {kept.path.name for kept in self.kept if kept.tier is tier and kept.start == start}
        number = next(n for n in range(len(before) + 1) if f"{start}.{n}" not in before)
        path = self._root / tier.name / f"{start}.{number}"
        points = tier.window_s // tier.step_s
        head = Head(start=start, step=tier.step_s, points=points, planes=tier.planes, metrics=dict(_NAMES))
        size = block.write(path, head, chunks)
        self._sound.add(path)
        return Kept(tier=tier, start=start, path=path, size_bytes=size)

    def add(self, kept: Kept) -> None:
        """Count a block that was written among those that are kept."""
        self.kept = tuple(sorted((*self.kept, kept), key=_order))

    def thin(self, until: int) -> int:
        """Make the coarser blocks whose windows ended by `until` and that are not there yet; say how many."""
        made = 0
        for fine, coarse in ((RAW, MINUTE), (MINUTE, HOUR)):
            there = {kept.start for kept in self.kept if kept.tier is coarse}
            wanted = {_window(kept.start, coarse) for kept in self.kept if kept.tier is fine} - there
            for start in sorted(wanted):
                if start + coarse.window_s <= until:
                    self._thin(fine, coarse, start)
                    made += 1
        return made

    def _thin(self, fine: Tier, coarse: Tier, start: int) -> None:
        with ExitStack() as stack:
            opened: list[tuple[Kept, Block]] = []
            for kept in self.kept:
                if kept.tier is not fine or not start <= kept.start < start + coarse.window_s:
                    continue
                try:
                    found = stack.enter_context(block.opened(kept.path))
                    self._check(kept.path, found)
                    opened.append((kept, found))
                except (Broken, OSError) as err:
                    self._passed_over(kept, err)
            self.add(self.write(coarse, start, self._thinned(opened, coarse, start)))

    def _thinned(self, opened: list[tuple[Kept, Block]], coarse: Tier, start: int) -> Iterator[Chunk]:
        for host in sorted({host for _, found in opened for host in found.hosts}):
            parts: list[tuple[int, Head, Chunk]] = []
            for kept, found in opened:
                if host not in found.hosts:
                    continue
                try:
                    place = (found.head.start - start) // coarse.step_s
                    parts.append((place, found.head, found.chunk(found.hosts[host])))
                except Broken as err:
                    self._passed_over(kept, err)
            yield _thin_host(host, parts, coarse)

    # --- dropping ---------------------------------------------------------------------------------------------------

    def tidy(self, now: float) -> int:
        """Drop blocks that are too old, then the oldest until the rest is small enough; return how many."""
        old = [kept for kept in self.kept if kept.end < now - self._keep.of(kept.tier)]
        left = [kept for kept in self.kept if kept not in set(old)]
        size = sum(kept.size_bytes for kept in left)
        short = max(0, RESERVE_BYTES - shutil.disk_usage(self._root).free - sum(kept.size_bytes for kept in old))
        for kept in sorted(left, key=lambda kept: kept.end):
            if size <= self._keep.most_bytes and short <= 0:
                break
            old.append(kept)
            size, short = size - kept.size_bytes, short - kept.size_bytes
        for kept in old:
            with suppress(OSError):
                kept.path.unlink(missing_ok=True)
        gone = {kept.path for kept in old}
        self.kept = tuple(kept for kept in self.kept if kept.path not in gone)
        self._sound -= gone
        self._told -= gone
        return len(old)


def _order(kept: Kept) -> tuple[int, str, str]:
    return (kept.start, kept.tier.name, kept.path.name)


def _window(at: int, tier: Tier) -> int:
    return at // tier.window_s * tier.window_s


def _as_today(codes: Codes, have: tuple[str, ...], thing: Id) -> Codes:
    """Return rows that were written under older names of metrics in the order of today's."""
    want = _NAMES[kind_of(thing)]
    if have == want:
        return codes
    found = np.full((codes.shape[0], len(want), codes.shape[2]), NONE, np.uint16)
    for row, name in enumerate(want):
        if name in have:
            found[:, row] = codes[:, have.index(name)]
    return found


def _thin_host(host: Id, parts: list[tuple[int, Head, Chunk]], coarse: Tier) -> Chunk:
    """Return what one host told in a coarse window; where two parts tell of one moment, the first counts."""
    at: dict[Id, int] = {}
    rows = 0
    for _, _, chunk in parts:
        for thing in chunk.at:
            if thing not in at:
                at[thing], rows = rows, rows + WIDTH[kind_of(thing)]
    found = np.full((2, rows, coarse.window_s // coarse.step_s), NONE, np.uint16)
    for place, head, chunk in parts:
        planes = chunk.codes.reshape(head.planes, -1, head.points)
        whole = np.full((2, rows, head.points), NONE, np.uint16)
        for thing, row in chunk.at.items():
            have = head.metrics.get(prefix_of(thing), ())
            own = _as_today(planes[:, row : row + len(have)], have, thing)
            whole[:, at[thing] : at[thing] + own.shape[1]] = own
        means, peaks = thin(whole[0], whole[1], coarse.step_s // head.step)
        span = slice(place, place + means.shape[1])
        for plane, new in enumerate((means, peaks)):
            found[plane, :, span] = np.where(found[plane, :, span] == NONE, new, found[plane, :, span])
    return Chunk(host, at, found.reshape(2 * rows, -1))

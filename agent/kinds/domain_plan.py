"""What one domain needs next: a pure function of the wish, of what is seen, and of the time.

Which run of the guest a fact belongs to is told by the pair (start_generation, boot_generation): libvirt holds the
pair that the domain was started for in its metadata element, and a mark says for which pair the guest was seen to
power itself off. A wish with a higher number overtakes both. One with a lower boot_generation takes a boot back: no
number ever stands for two wishes.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import msgspec

from agent.drivers.hypervisor import Cause, LiveDomain, Sharing
from agent.drivers.place import BootFiles, Place
from agent.kinds import domain_disks, domain_growth, first_boot
from agent.kinds.balloon import AGAIN_S, GuestMemory, HostMemory, target_mib
from agent.kinds.domain_disks import AttachDisk, DataView, DetachDisk
from agent.kinds.domain_growth import AddCpus, AddMemory, Refused
from agent.kinds.domain_xml import DomainXml, domain_xml, metadata_xml
from agent.kinds.first_boot import Sight
from agent.kinds.unit import Do, Mark, Settled, Wait, Wish
from common.boots import FirstBoot
from common.documents import Desired, DomainDoc, DomainSeen, GuestMetadata, Report, key_of
from common.ids import Id

STOP_ASKED = "stop-asked-at"
"""`<when> <run>`: when the guest of that run (by its start) was first asked to power itself off, seconds since the
epoch; the grace counts from here. `taken-back <run>`: its grace is over, and it is wanted again. Kept for as long as
that run, or its end, is seen: however late a guest does as it was asked, that must not be taken for its own wish."""

TAKEN_BACK = "taken-back"

STOPPED_BY_GUEST = "stopped-by-guest"
"""`<start>.<boot>` generation of the run that the guest ended itself: it stays off until one of them is higher."""

STARTED = "started"
"""`<start>.<boot>` generation last seen running. Kept only where the restart policy is `never`."""

PRESS_AGAIN_S = 5.0
"""A guest that is still booting overhears the power button, so it is pressed again; init ignores it while stopping."""

CRASH_WINDOW_S = 600.0
MOST_CRASH_DELAY_S = 60.0

ROOM_TO_RESUME_BYTES = 1 << 30


class Define(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Give libvirt the definition, in place of an older one."""

    vm: Id
    xml: str


class Start(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Have it running."""

    vm: Id
    revives: Cause
    """Why it was off, where nobody had wished it to be; empty: a start as wished."""


class Resume(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Let a paused domain run on."""

    vm: Id


class PressPowerButton(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Ask the guest to power itself off."""

    vm: Id


class Destroy(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Cut the power."""

    vm: Id


class Undefine(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Have libvirt forget a domain that is to be gone."""

    destroys: ClassVar[bool] = True
    vm: Id


class Stamp(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Write to a running domain that it stands for a newer wish, too."""

    vm: Id
    metadata: str


class BuildSeed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Make the NoCloud disk."""

    vm: Id
    metadata: GuestMetadata


class RemoveFiles(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Remove serial log and NoCloud disk."""

    destroys: ClassVar[bool] = True
    vm: Id


class Share(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Have a running domain share the host's CPUs so."""

    vm: Id
    sharing: Sharing


class SetMemory(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Ask a running domain's balloon to leave it so much."""

    vm: Id
    memory_mib: int


class RenewTpm(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Have it find a TPM at its start that holds nothing, and goes with this disk."""

    vm: Id
    disk: Id


DomainStep = (
    Define
    | Start
    | Resume
    | PressPowerButton
    | Destroy
    | Undefine
    | Stamp
    | BuildSeed
    | RemoveFiles
    | Share
    | SetMemory
    | AttachDisk
    | DetachDisk
    | AddCpus
    | AddMemory
    | RenewTpm
)


class DomainView(msgspec.Struct, frozen=True, kw_only=True):
    """All that a turn looks at."""

    place: Place
    domain: LiveDomain | None
    missing_volumes: tuple[Id, ...] = ()
    missing_networks: tuple[Id, ...] = ()
    """Those whose bridge is not there."""
    boot: BootFiles | None = None
    """The unpacked kernel image, where the document asks for one and it is there."""
    seed_wanted: str = ""
    """Digest of what the NoCloud disk should hold; empty: no such disk is wanted."""
    seed_found: str = ""
    """Digest of what it holds; empty: there is none."""
    files: bool = False
    """Whether a serial log or a NoCloud disk (or a part of one) exists."""
    pool_free_bytes: int = 0
    pressed_at: float | None = None
    """When this agent process last pressed the power button in the present run."""
    starts: tuple[float, ...] = ()
    """When this agent process started it, of late."""
    first_boot: Sight | None = None
    """Of a machine that comes up for the first time; None: it does not, or nobody watches."""
    unshared: str = ""
    """Why this agent process could not share CPUs out to the present run."""
    host_memory: HostMemory | None = None
    """Looked at only where the guest may lend memory, or does."""
    unused_mib: int | None = None
    """Likewise: what the guest could do without."""
    ballooned_at: float | None = None
    """When this agent process last moved its balloon."""
    data: DataView = DataView()
    ungrown: Refused | None = None
    """What this agent process could not give the present run of vCPUs or memory."""
    tpm_disk: Id | None = None
    """The disk that what its TPM holds goes with; None: it holds nothing."""


Outcome = Do[DomainStep] | Mark | Wait | Settled


class _Turn(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of `plan`, taken apart."""

    item: Desired
    doc: DomainDoc
    marks: Mapping[str, str]
    seen: DomainView
    now: float

    @property
    def run(self) -> str:
        return f"{self.doc.start_generation}.{self.doc.boot_generation}"

    @property
    def same_run(self) -> bool:
        """Whether the domain was defined for the very generations that are wished."""
        domain = self.seen.domain
        return domain is not None and (domain.start_generation, domain.boot_generation) == (
            self.doc.start_generation,
            self.doc.boot_generation,
        )

    @property
    def taken_back(self) -> bool:
        """Whether the wished run ended as it was asked to, by a wish that has been taken back since."""
        mark, domain = self.marks.get(STOP_ASKED), self.seen.domain
        if mark is None or domain is None or self.doc.power != "running" or not self.same_run:
            return False
        return domain.cause == "guest" or not mark.startswith(TAKEN_BACK)

    def wanted(self) -> DomainXml | None:
        """Return the wished definition; None while it can't be written: a kernel's command line is in its image."""
        if self.doc.kernel is not None and self.seen.boot is None:
            return None
        return domain_xml(self.doc, self.seen.place, self.seen.boot)


def plan(wish: Wish, seen: DomainView, now: float) -> Outcome:
    """Decide the next step for one domain."""
    (item,) = wish.items.values()
    doc = item.doc
    assert isinstance(doc, DomainDoc)
    turn = _Turn(item=item, doc=doc, marks=wish.marks, seen=seen, now=now)
    if item.gone:
        return _plan_gone(turn)
    if seen.domain is not None and seen.domain.activity != "off":
        return _plan_active(turn, seen.domain)
    return _plan_off(turn)


def _plan_gone(turn: _Turn) -> Outcome:
    vm, domain = turn.doc.id, turn.seen.domain
    if domain is not None and domain.activity != "off":
        return Do(Destroy(vm=vm), "cutting the power: the machine is being deleted")
    if domain is not None:
        return Do(Undefine(vm=vm), "removing the machine")
    if turn.seen.files:
        return Do(RemoveFiles(vm=vm), "removing the machine's serial log")
    return Settled(reports=(Report(key=key_of(turn.doc), revision=turn.item.revision, done=True),))


# --- on -----------------------------------------------------------------------------------------------------------


def _plan_active(turn: _Turn, domain: LiveDomain) -> Outcome:
    doc = turn.doc
    if doc.power == "stopped" or _reboots(turn, domain):
        return _plan_power_off(turn, domain)
    asked = _asked_at(turn, domain)
    if asked is not None and asked > turn.now:
        return _ask_now(turn, domain)
    if asked is not None and turn.now < asked + doc.stop_grace_s:
        return _wait_on(turn, domain, "powering off as asked before, then starting again", asked + doc.stop_grace_s)
    if asked is not None:
        return Mark(name=STOP_ASKED, value=f"{TAKEN_BACK} {_run_of(domain)}")
    if STOP_ASKED in turn.marks and turn.marks[STOP_ASKED] != f"{TAKEN_BACK} {_run_of(domain)}":
        return Mark(name=STOP_ASKED, value=None)
    if STOPPED_BY_GUEST in turn.marks:
        return Mark(name=STOPPED_BY_GUEST, value=None)
    if not turn.same_run:
        return Do(Stamp(vm=doc.id, metadata=metadata_xml(doc, domain.shape)), "noting that it runs as wished")
    if domain.activity == "paused":
        return _plan_paused(turn, domain)
    if doc.restart == "never" and turn.marks.get(STARTED) != turn.run:
        return Mark(name=STARTED, value=turn.run)
    return _adjusted(turn, domain) or _follow_first_boot(turn, domain)


def _adjusted(turn: _Turn, domain: LiveDomain) -> Do[DomainStep] | None:
    """Return the step that changes what runs, where it is not as wished and can be while it runs."""
    doc, seen = turn.doc, turn.seen
    wanted = Sharing(weight=doc.cpu_weight, cap_percent=doc.cpu_cap_percent)
    if domain.sharing is not None and domain.sharing != wanted and not seen.unshared:
        return Do(Share(vm=doc.id, sharing=wanted), "setting its share of the host's CPUs")
    if grows := domain_growth.next_step(doc, domain, seen.ungrown, turn.now):
        return Do(*grows)
    if disks := domain_disks.next_step(doc, domain, seen.place, seen.data, turn.now):
        return Do(*disks)
    if (target := _balloon(turn, domain)) is not None:
        return Do(SetMemory(vm=doc.id, memory_mib=target), f"having its balloon leave it {target} MiB")
    return None


def _reboots(turn: _Turn, domain: LiveDomain) -> bool:
    """Say whether the present run has to end: one with a higher number is wished, or it has hardware that is not.

    It has that by a boot that was taken back after it was carried out: from a rescue disk, or with another size.
    """
    runs, wished = domain.boot_generation, turn.doc.boot_generation
    if runs is None or runs <= wished:
        return runs is not None and runs < wished
    wanted = turn.wanted()
    return wanted is not None and wanted.shape != domain.shape


def _follow_first_boot(turn: _Turn, domain: LiveDomain) -> Outcome:
    """Look again and again at a machine that runs as wished until it is settled how it came up."""
    before, sight = first_boot.known(turn.marks), turn.seen.first_boot
    if sight is None:
        if before is not None and before.verdict == "pending":
            return Mark(name=first_boot.MARK, value=None)  # it was started anew before it had come up
        report = _on_report(turn, domain, done=True)
        if lacking := domain_disks.note(turn.doc, domain, turn.seen.data):
            return Wait(message=lacking, seconds=domain_disks.LOOK_AGAIN_S, reports=(report,))
        return Settled(reports=(report,))
    boot = first_boot.judge(before, turn.doc, domain.started_at, sight, turn.now)
    if first_boot.is_news(boot, before):
        return Mark(name=first_boot.MARK, value=first_boot.mark_of(boot))
    report = _on_report(turn, domain, done=True, boot=boot)
    if boot.verdict != "pending":
        return Settled(reports=(report,))
    pause = first_boot.pause_s(domain.started_at, turn.now)
    return Wait(message="it comes up for the first time", seconds=pause, reports=(report,))


def _balloon(turn: _Turn, domain: LiveDomain) -> int | None:
    seen, least = turn.seen, turn.doc.memory_min_mib
    just_now = seen.ballooned_at is not None and seen.ballooned_at <= turn.now < seen.ballooned_at + AGAIN_S
    if seen.host_memory is None or just_now:
        return None
    guest = GuestMemory(full_mib=domain.memory_mib, has_mib=domain.balloon_mib, unused_mib=seen.unused_mib)
    return target_mib(least, guest, seen.host_memory)


def _note(turn: _Turn, domain: LiveDomain) -> str:
    """Say what of the wish is not in effect on this host."""
    words = [ungrown] if (ungrown := domain_growth.note(turn.doc, domain, turn.seen.ungrown)) else []
    lacks = turn.seen.unshared or domain.sharing_lacks
    if lacks and (turn.doc.cpu_weight != 100 or turn.doc.cpu_cap_percent is not None):
        words.append(f"its CPU weight and cap have no effect, since its host can't share out CPUs: {lacks}")
    return "; ".join(words)


def _plan_paused(turn: _Turn, domain: LiveDomain) -> Outcome:
    if domain.cause == "busy":
        return _wait_on(turn, domain, "libvirt is at work on it", turn.now + 2)
    free = turn.seen.pool_free_bytes
    if domain.cause == "io-error" and free < ROOM_TO_RESUME_BYTES:
        problem = (
            f"paused by a failed disk write: the host's pool has {free >> 20} MiB left and "
            f"{ROOM_TO_RESUME_BYTES >> 20} MiB are needed to go on; delete volumes on this host or add room to its pool"
        )
        return Wait(message=problem, seconds=10, reports=(_on_report(turn, domain, done=False, problem=problem),))
    return Do(Resume(vm=turn.doc.id), "letting it run on")


def _plan_power_off(turn: _Turn, domain: LiveDomain) -> Outcome:
    doc, seen = turn.doc, turn.seen
    asked = _asked_at(turn, domain)
    if doc.stop_grace_s == 0:
        return Do(Destroy(vm=doc.id), "cutting the power")
    if asked is None or asked > turn.now:
        return _ask_now(turn, domain)
    end = asked + doc.stop_grace_s
    if turn.now >= end:
        return Do(Destroy(vm=doc.id), f"cutting the power: it did not power off in {doc.stop_grace_s} s")
    if domain.activity == "paused" and domain.cause != "busy":
        return Do(Resume(vm=doc.id), "letting it run on, so that it can power off")
    if seen.pressed_at is None or not seen.pressed_at <= turn.now < seen.pressed_at + PRESS_AGAIN_S:
        return Do(PressPowerButton(vm=doc.id), "asking the guest to power off")
    return _wait_on(turn, domain, "powering off", min(end, seen.pressed_at + PRESS_AGAIN_S))


def _asked_at(turn: _Turn, domain: LiveDomain) -> float | None:
    """Return when the present run was asked to power off; what was asked of an earlier run does not count.

    That lies ahead where the clock was set back since: then the time the guest is given begins anew.
    """
    at, _, run = turn.marks.get(STOP_ASKED, "").partition(" ")
    return float(at) if run == _run_of(domain) and at != TAKEN_BACK else None


def _run_of(domain: LiveDomain) -> str:
    return f"{domain.started_at:.3f}"


def _ask_now(turn: _Turn, domain: LiveDomain) -> Mark:
    """Write down when which run was asked: their order in time would say nothing, since a clock may be set back."""
    return Mark(name=STOP_ASKED, value=f"{turn.now:.3f} {_run_of(domain)}")


# --- off ----------------------------------------------------------------------------------------------------------


def _plan_off(turn: _Turn) -> Outcome:
    doc, domain = turn.doc, turn.seen.domain
    forgotten = domain is None or domain.cause == "unknown"
    if STOP_ASKED in turn.marks and forgotten and not turn.taken_back:
        return Mark(name=STOP_ASKED, value=None)
    by_guest = turn.marks.get(STOPPED_BY_GUEST) == turn.run
    if doc.power == "running" and not by_guest:
        if domain is not None and turn.same_run and domain.cause == "guest" and not turn.taken_back:
            return Mark(name=STOPPED_BY_GUEST, value=turn.run)
        if doc.restart != "never" or turn.taken_back or not _died(turn):
            return _plan_start(turn)
    return _undefined_yet(turn) or Settled(reports=(_off_report(turn, by_guest=by_guest),))


def _died(turn: _Turn) -> bool:
    """Say whether the wished run has ended, other than by a wish or by the guest itself."""
    domain = turn.seen.domain
    ended = domain is not None and turn.same_run and domain.cause in {"crashed", "destroyed", "host"}
    return ended or turn.marks.get(STARTED) == turn.run


def _plan_start(turn: _Turn) -> Outcome:
    doc, seen, domain = turn.doc, turn.seen, turn.seen.domain
    if lacking := _lacking(turn):
        if domain is not None and (define := _undefined_yet(turn)):
            return define  # so that it lets go of disks that are to be removed
        return Wait(message=lacking, seconds=5, reports=(_not_yet(turn, lacking),))
    unasked = domain is not None and turn.same_run and domain.cause != "unknown" and not turn.taken_back
    revives: Cause = domain.cause if domain is not None and unasked else ""
    if revives and (pause := _crash_pause(seen.starts, turn.now)) > 0:
        message = f"it ended unasked ({revives}); it was started {len(seen.starts)} times of late, so it waits a little"
        return Wait(message=message, seconds=pause, reports=(_not_yet(turn, message),))
    if seen.seed_wanted and seen.seed_wanted != seen.seed_found:
        return Do(BuildSeed(vm=doc.id, metadata=doc.metadata), "making the NoCloud disk")
    if doc.tpm and seen.tpm_disk not in doc.volumes:
        return Do(RenewTpm(vm=doc.id, disk=doc.volumes[-1]), "making it a TPM")
    say = "starting it again" if revives else "starting"
    return _undefined_yet(turn) or Do(Start(vm=doc.id, revives=revives), say)


def _undefined_yet(turn: _Turn) -> Do[DomainStep] | None:
    """Return the step that gives libvirt the wished definition, None where it has it or it can't be written yet."""
    domain, wanted = turn.seen.domain, turn.wanted()
    if wanted is None or (domain is not None and turn.same_run and domain.shape == wanted.shape):
        return None
    return Do(Define(vm=turn.doc.id, xml=wanted.text), "defining the machine")


def _crash_pause(starts: tuple[float, ...], now: float) -> float:
    """Return the seconds to wait before a guest that ended unasked is started again: 0, 2, 4, 8, … up to a minute."""
    recent = [at for at in starts if 0 <= now - at < CRASH_WINDOW_S]
    if len(recent) < 2:
        return 0
    return recent[-1] + min(MOST_CRASH_DELAY_S, 2.0 ** (len(recent) - 1)) - now


def _lacking(turn: _Turn) -> str:
    lacking = [f"volume {volume}" for volume in turn.seen.missing_volumes]
    lacking += [f"volume {volume}" for volume in turn.seen.data.missing]
    lacking += [f"volume {volume}, which {who} still has" for volume, who in turn.seen.data.held.items()]
    lacking += [f"network {network}" for network in turn.seen.missing_networks]
    if turn.doc.kernel is not None and turn.seen.boot is None:
        lacking.append("the kernel image")
    return f"waiting for {', '.join(lacking)} on this host" if lacking else ""


# --- reports ------------------------------------------------------------------------------------------------------


def _wait_on(turn: _Turn, domain: LiveDomain, message: str, until: float) -> Wait:
    report = _on_report(turn, domain, done=False, message=message)
    return Wait(message=message, seconds=max(0.05, until - turn.now), reports=(report,))


def _on_report(
    turn: _Turn,
    domain: LiveDomain,
    *,
    done: bool,
    message: str = "",
    problem: str = "",
    boot: FirstBoot | None = None,
) -> Report:
    seen = DomainSeen(
        state="paused" if domain.activity == "paused" else "running",
        start_generation=domain.start_generation or 0,
        boot_generation=domain.boot_generation or 0,
        started_at=domain.started_at,
        vcpus=domain.vcpus,
        memory_mib=domain.memory_mib,
        first_boot=boot or _settled_boot(turn),
        balloon_mib=domain.balloon_mib if domain.balloon_mib < domain.memory_mib else 0,
        note=_note(turn, domain),
        data=tuple(disk.volume for disk in domain_disks.data_of(domain)),
        data_note=domain_disks.note(turn.doc, domain, turn.seen.data),
        vcpus_max=domain.most.vcpus,
        memory_max_mib=domain.most.memory_mib,
        memory_slots=domain.most.slots,
        firmware=domain.started.firmware,
        tpm=domain.started.tpm,
    )
    revision = turn.item.revision
    return Report(key=key_of(turn.doc), revision=revision, done=done, message=message, problem=problem, seen=seen)


def _settled_boot(turn: _Turn) -> FirstBoot | None:
    before = first_boot.known(turn.marks)
    return before if before is not None and before.verdict != "pending" else None


def _not_yet(turn: _Turn, message: str) -> Report:
    """Report a domain that is off and is to run; its generations are those of its last run, 0 before the first."""
    domain = turn.seen.domain
    seen = DomainSeen(
        state="stopped",
        start_generation=(domain.start_generation if domain else None) or 0,
        boot_generation=(domain.boot_generation if domain else None) or 0,
        started_at=0,
        first_boot=_settled_boot(turn),
    )
    return Report(key=key_of(turn.doc), revision=turn.item.revision, done=False, message=message, seen=seen)


def _off_report(turn: _Turn, *, by_guest: bool) -> Report:
    """Report a domain that stays off. Though wished running: its guest, or its end and the policy, want it so."""
    state: Literal["stopped", "stopped-by-guest", "crashed"] = "stopped"
    if turn.doc.power == "running":
        state = "stopped-by-guest" if by_guest else "crashed"
    seen = DomainSeen(
        state=state,
        start_generation=turn.doc.start_generation,
        boot_generation=turn.doc.boot_generation,
        started_at=0,
        first_boot=_settled_boot(turn),
        data=tuple(one.volume for one in turn.doc.data),
    )
    return Report(key=key_of(turn.doc), revision=turn.item.revision, done=True, seen=seen)

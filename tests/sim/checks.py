"""What must be so in the simulated world: always, once it is quiet, and when all has been deleted."""

import json
from collections import Counter

from sqlalchemy import func, select

from common.documents import DocKey, DomainDoc
from common.growth import Room, cpus_wait, memory_waits
from common.ids import HostId, Id, body, is_id
from common.kinds.kind import AnyResource, kept_until
from controller.fleet.audit import compare
from controller.store import tables
from sim.cloud import Cloud
from sim.process import Agent
from sim.world import World


def always(cloud: Cloud) -> None:
    """Hold at every moment, whatever just happened."""
    world = cloud.world
    _claims_add_up(world, cloud.liars)
    _groups_hold(world)
    honest = [node for node in world.nodes.values() if node.host not in cloud.liars]
    running = Counter(vm for node in honest for vm in node.machine.guests.runs)
    assert all(count == 1 for count in running.values()), f"a guest runs twice: {running.most_common(1)}"
    deleted = cloud.deleted | _kept_long_enough(cloud)
    bodies = {body(one) for one in deleted if not is_id(one, "vol")}
    for node in honest:
        unasked = [one for one in node.machine.destroyed if body(one) not in bodies and one not in deleted]
        assert not unasked, f"destroyed on {node.machine.name} and nobody asked: {unasked}"
        forgotten = [disk for disk in node.machine.guests.forgotten if disk not in deleted]
        assert not forgotten, f"a TPM on {node.machine.name} lost what went with {forgotten}"
        _addresses_are_own(world, node.machine.name)
        for vm, run in node.machine.guests.runs.items():
            lost = [disk for disk in run.disks if not node.machine.has_disk(disk)]
            assert not lost, f"{vm} runs without its disks {lost}"
    _guests_run_with_what_is_reserved(cloud)


def _kept_long_enough(cloud: Cloud) -> set[Id]:
    """Return what went with the machines that were deleted, kept, and not restored in time."""
    r = tables.resource.c
    with cloud.world.engine.connect() as connection:
        there = connection.execute(select(r.id).where(r.id.in_(cloud.kept), r.deleted_at.is_(None))).scalars()
        return {one for vm in cloud.kept.keys() - set(there) for one in cloud.kept[vm]}


def _guests_run_with_what_is_reserved(cloud: Cloud) -> None:
    """No guest ever runs with more than the books say, whatever is being resized."""
    with cloud.world.engine.connect() as connection:
        claims = {row.owner: row for row in connection.execute(select(tables.placement))}
    for node in cloud.world.nodes.values():
        if node.host in cloud.liars:
            continue
        for vm, run in node.machine.guests.runs.items():
            claim = claims.get(vm)
            if claim is None:  # its host was lost, and is not wanted any more
                continue
            assert run.vcpus <= claim.vcpus, f"{vm}: {run}, claimed {claim}"
            assert run.memory_mib <= claim.memory_mib, f"{vm}: {run}, claimed {claim}"


def _claims_add_up(world: World, liars: set[HostId]) -> None:
    p, r = tables.placement.c, tables.resource.c
    with world.engine.connect() as connection:
        sold = {
            row.host: row
            for row in connection.execute(
                select(
                    p.host,
                    func.sum(p.vcpus).label("vcpus"),
                    func.sum(p.memory_mib).label("memory_mib"),
                    func.sum(p.disk_gib).label("disk_gib"),
                ).group_by(p.host)
            )
        }
        for row in connection.execute(select(tables.capacity)):
            own = sold.get(row.host)
            for what in ("vcpus", "memory_mib", "disk_gib"):
                used, limit = getattr(row, f"{what}_used"), getattr(row, what)
                placed = getattr(own, what) if own else 0
                assert used == placed, f"host {row.host}: {what} used {used}, placements {placed}"
                assert used <= limit or row.host in liars, f"host {row.host}: {what} oversold, {used} of {limit}"
        names = connection.execute(
            select(func.count()).select_from(tables.resource).group_by(r.kind, r.project, r.name)
        ).scalars()
        assert all(count == 1 for count in names)


def _groups_hold(world: World) -> None:
    """Machines of a hard group over hosts are apart, or together, as far as their own rows and placements say."""
    r, p = tables.resource.c, tables.placement.c
    with world.engine.connect() as connection:
        rows = connection.execute(select(r.id, r.spec).where(r.kind.in_(("group", "vm")))).all()
        hosts = {row.owner: row.host for row in connection.execute(select(p.owner, p.host))}
    specs = {row.id: json.loads(row.spec) for row in rows}
    for group, rule in specs.items():
        if "policy" not in rule or rule["over"] != "host" or not rule["hard"]:
            continue
        found = Counter(hosts[vm] for vm, spec in specs.items() if vm in hosts and group in spec.get("groups", ()))
        apart = rule["policy"] == "anti-affinity"
        assert not apart or all(count == 1 for count in found.values()), f"{group}: two on one host: {found}"
        assert apart or len(found) <= 1, f"{group} is to be together: {found}"


def _addresses_are_own(world: World, name: str) -> None:
    """No guest is served, or reached by, an address of another one: as far as dnsmasq was told."""
    for network, own in world.nodes[name].machine.kernel.networks.items():
        lines = own.served.dhcp_hosts.splitlines() if own.served else []
        addresses = [line.split(",")[1] for line in lines]
        assert len(set(addresses)) == len(addresses), f"{network} on {name} serves an address twice: {lines}"


def quiet(cloud: Cloud) -> None:
    """Hold once nothing moves any more: wish and reality are one, and every operation has ended or says why not."""
    seen, world = cloud.seen, cloud.world
    for node in world.nodes.values():
        assert node.agent is not None
        found = world.within_agent(node, Agent.survey)
        assert found is not None
        differences = compare(world.seen_by_its(node), node.host, found)
        assert not differences, f"{node.machine.name}: {differences}"
        _every_document_is_done(cloud, node.host)
    for operation in seen.operations():
        if operation.finished_at is None:
            explained = operation.state == "blocked" and operation.why is not None
            assert explained, f"not ended, not explained: {operation}"
    for row in seen:
        assert row.deleted_at is None, f"still there: {row}"
        explained = row.status.state == "blocked" or row.status.why is not None
        assert row.observed_generation == row.generation or explained, f"not seen through: {row}"
    for vm in seen.of_kind("vm"):
        _vm_is_as_it_says(cloud, vm.id)
    for volume in seen.of_kind("volume"):
        if volume.spec.snapshot and volume.observed_generation:
            _clone_holds_what_was_kept(cloud, volume)


def _every_document_is_done(cloud: Cloud, host: HostId) -> None:
    seen = next(cloud.world.seen_by_its(node) for node in cloud.world.nodes.values() if node.host == host)
    for document in seen.documents(host):
        report = seen.report(host, document.key)
        assert report is not None, f"nothing said of {document.key}"
        assert report.done, f"not done: {report}"


def _clone_holds_what_was_kept(cloud: Cloud, volume: AnyResource) -> None:
    """What was written to a clone later comes after what its snapshot holds, and lies on the same host."""
    snapshot = Id(volume.spec.snapshot)
    here = [node.machine for node in cloud.world.nodes.values() if volume.id in node.machine.content]
    assert len(here) == 1, f"{volume.name} is on {len(here)} hosts"
    kept, holds = here[0].content.get(snapshot), here[0].content[volume.id]
    assert kept or cloud.seen.get(snapshot) is None, f"{volume.name} lies elsewhere than its snapshot"
    assert holds.startswith(kept or "vol-"), f"{volume.name} holds {holds}, its snapshot {kept}"
    assert not holds.startswith(volume.id), f"{volume.name} was made blank"


def _vm_is_as_it_says(cloud: Cloud, vm: Id) -> None:
    row = cloud.seen.get(vm)
    assert row is not None
    placement = cloud.seen.placement(vm)
    if row.status.state == "blocked" or (placement is None and kept_until(row)):
        assert placement is None
        return
    assert placement is not None
    node = next(node for node in cloud.world.nodes.values() if node.host == placement.host)
    runs = vm in node.machine.guests.runs
    assert runs == (row.status.state == "running"), f"{row.name} runs: {runs}, its status: {row.status}"
    if row.spec.power == "stopped" or kept_until(row):
        assert not runs, f"{row.name} runs though stopped"
    if kept_until(row):
        return
    assert placement.disk_gib == sum(child.spec.size_gib for child in cloud.seen.children(vm)), f"{row.name}'s disks"
    if runs:
        stamp = node.machine.guests.runs[vm].stamp
        rescue_waits = row.spec.rescue is not None and row.status.why is not None
        booted = stamp.boot_generation == row.spec.boot_generation
        assert booted or rescue_waits, f"{row.name} was not rebooted: {stamp}, {row.spec}"
        run, doc = node.machine.guests.runs[vm], _document(cloud, node.host, vm)
        room = Room(
            vcpus=run.vcpus,
            memory_mib=run.memory_mib,
            vcpus_max=run.most.vcpus,
            memory_max_mib=run.most.memory_mib,
            slots=run.most.slots,
        )
        assert run.vcpus == doc.vcpus or cpus_wait(room, doc.vcpus), f"{row.name} could grow: {run}, {doc}"
        assert run.memory_mib == doc.memory_mib or memory_waits(room, doc.memory_mib), f"{row.name}: {run}, {doc}"
        if run.started.tpm:
            disk = node.machine.guests.tpms[vm]
            assert disk in {child.id for child in cloud.seen.children(vm)}, f"the TPM of {row.name} goes with {disk}"
        sharing = node.machine.guests.runs[vm].sharing
        assert (sharing.weight, sharing.cap_percent) == (row.spec.cpu_weight, row.spec.cpu_cap_percent)


def _document(cloud: Cloud, host: HostId, vm: Id) -> DomainDoc:
    seen = next(cloud.world.seen_by_its(node) for node in cloud.world.nodes.values() if node.host == host)
    document = seen.document(host, DocKey(f"domain/{vm}"))
    assert document is not None
    assert isinstance(document.doc, DomainDoc)
    return document.doc


def empty(cloud: Cloud) -> None:
    """Hold when all has been deleted: nothing is left anywhere."""
    with cloud.world.engine.connect() as connection:
        for table in (
            tables.placement,
            tables.membership,
            tables.meeting,
            tables.capacity,
            tables.address,
            tables.vni,
            tables.document,
            tables.enrolment,
            tables.token,
            tables.password,
        ):
            left = connection.execute(select(table)).all()
            assert not left, f"left in {table.name}: {left}"
        queue = connection.execute(select(tables.queue.c.resource)).scalars().all()
        rows = connection.execute(select(tables.resource.c.id, tables.resource.c.name)).all()
        assert sorted(queue) == sorted(row.id for row in rows)
        assert sorted(row.name for row in rows) == ["default", "system"], f"left: {rows}"
        operations = connection.execute(select(tables.operation).where(tables.operation.c.finished_at.is_(None))).all()
        assert not operations, f"open: {operations}"


def machines_empty(cloud: Cloud) -> None:
    """Hold when nothing is wanted of any host any more."""
    for node in cloud.world.nodes.values():
        left = node.machine.leftovers()
        assert not left, f"left on {node.machine.name}: {left}"
        assert node.agent is not None
        assert not node.agent.memory.items, f"{node.machine.name} remembers {sorted(node.agent.memory.items)}"
        assert not node.agent.loop.reports()

"""What was done for an operation, as the loop sees it: its own steps, those on hosts, and what it waits for. Pure."""

from collections.abc import Iterator

import msgspec

from common.documents import PortDoc
from common.ids import HostId, Id, RequestId
from common.kinds.kind import AnyResource
from controller.store.rows import Document, OperationStep
from controller.store.working import WorkingSet
from controller.store.writes import AnyWrite, PutDocument, ResizePlacement, TakePlacement, Tombstone


def request_of(seen: WorkingSet, resource: Id) -> RequestId:
    """Return the request that a resource is worked on for: its own, or that of what made it. Empty: for none."""
    if operations := seen.open_operations(resource):
        return operations[-1].request
    row = seen.get(resource)
    return request_of(seen, row.owner) if row and row.owner else RequestId("")


def stamped(seen: WorkingSet, subject: AnyResource, writes: tuple[AnyWrite, ...]) -> tuple[AnyWrite, ...]:
    """Return the writes of a step with the request that each document is written for: a port's is its machine's."""
    request = request_of(seen, subject.id)
    return tuple(_stamped(seen, write, request) for write in writes)


def _stamped(seen: WorkingSet, write: AnyWrite, request: RequestId) -> AnyWrite:
    match write:
        case PutDocument(doc=PortDoc(vm=vm)):
            return msgspec.structs.replace(write, request=request_of(seen, vm) or request)
        case PutDocument() | Tombstone() if request:
            return msgspec.structs.replace(write, request=request)
        case _:
            return write


def hosts_of(seen: WorkingSet, writes: tuple[AnyWrite, ...]) -> str:
    """Return the names of the hosts that a step concerns."""
    found: dict[HostId, None] = {}
    for write in writes:
        match write:
            case PutDocument(host=host) | Tombstone(host=host):
                found[host] = None
            case TakePlacement(placement=placement) | ResizePlacement(placement=placement):
                found[placement.host] = None
            case _:
                pass
    names = [seen.name_of(host) for host in found]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def on_hosts(seen: WorkingSet, subject: Id) -> tuple[OperationStep, ...]:
    """Return the steps that hosts told of a resource and of what it made."""
    found = []
    for owner in (subject, *(child.id for child in seen.children(subject))):
        for host, steps in seen.taken(owner):
            name = seen.name_of(host)
            found += [
                OperationStep(
                    at=step.at,
                    what=step.what,
                    host=name,
                    seconds=step.seconds,
                    retries=step.failures,
                    cause=step.problem,
                )
                for step in steps
            ]
    return tuple(sorted(found, key=lambda step: step.at))


def host_says(seen: WorkingSet, subject: Id, message: str) -> bool:
    """Say whether a message is a host's own words on work that it has under way: then its steps tell it."""
    for document in _documents(seen, subject):
        report = seen.report(document.host, document.key)
        if (
            report
            and not report.done
            and (report.message or report.problem)
            and message.endswith(report.problem or report.message)
        ):
            return True
    return False


def _documents(seen: WorkingSet, subject: Id) -> Iterator[Document]:
    for owner in (subject, *(child.id for child in seen.children(subject))):
        yield from seen.owned_documents(owner)

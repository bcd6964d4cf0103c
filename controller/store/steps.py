"""Steps: the writes that planners ask for, all of one step in one transaction."""

from typing import Any

import msgspec
from sqlalchemy import bindparam, delete, insert, literal_column, select, text, true, update

from common.codec import to_json
from common.documents import key_of
from common.errors import Conflict
from common.ids import HostId, Id, Revision
from common.kinds import kind_named
from common.kinds.kind import Resource
from controller.store import chain, claims, graves, members, quota, tables
from controller.store.mutations import amend, close_operations, happened, poke
from controller.store.prepared import Prepared
from controller.store.rows import Document, Enrolment, Given, Token
from controller.store.tx import Tx, document_from, insert_resource
from controller.store.writes import (
    Amend,
    AnyWrite,
    BuryOrphan,
    ChangeChild,
    ClaimAddress,
    ClaimVni,
    CreateChild,
    DeleteChild,
    DropAccount,
    Forget,
    ForgetHost,
    MoveHost,
    Poke,
    PutDocument,
    PutEnrolment,
    PutPassword,
    PutToken,
    Recharge,
    Recount,
    ReleaseAddresses,
    ReleasePlacement,
    ReleaseVni,
    RemovePassword,
    RemoveToken,
    ResizePlacement,
    SetCapacity,
    SetLimits,
    TakePlacement,
    Tombstone,
)

_d, _r, _q = tables.document.c, tables.resource.c, tables.queue.c
_DOCUMENT = tuple(column.name for column in _d)
_PUT_DOCUMENT = Prepared(
    text(
        "INSERT INTO document (host, key, owner, body, gone, revision, request) "
        "VALUES (:host, :key, :owner, :body, false, :revision, :request) "
        "ON CONFLICT (host, key) DO UPDATE SET owner = excluded.owner, body = excluded.body, gone = false, "
        "revision = excluded.revision, request = excluded.request"
    )
)
_TOMBSTONE = Prepared(
    update(tables.document)
    .where(_d.host == bindparam("of_host"), _d.key == bindparam("of_key"), _d.gone.is_(False))
    .values(gone=true(), revision=bindparam("revision"), request=bindparam("request"))
    .returning(*_d)
)
_ACKNOWLEDGE = Prepared(
    delete(tables.document)
    .where(
        _d.host == bindparam("of_host"),
        _d.key == bindparam("of_key"),
        _d.gone.is_(True),
        _d.revision <= bindparam("upto"),
    )
    .returning(*_d)
)
_DELETE_CHILD = Prepared(
    update(tables.resource)
    .where(_r.id == bindparam("of"), _r.deleted_at.is_(None))
    .values(deleted_at=bindparam("now"), generation=_r.generation + literal_column("1"), revision=bindparam("revision"))
)
_FORGET = Prepared(delete(tables.resource).where(_r.id == bindparam("of")))
_LEAVE_QUEUE = Prepared(delete(tables.queue).where(_q.resource == bindparam("of")))


EXPIRED_KEPT_S = 7 * 86400.0
"""How long a session's token is known as one that has expired."""


def apply_writes(tx: Tx, writes: tuple[AnyWrite, ...]) -> None:
    """Apply the writes of one step in order. Raises Conflict or NoCapacity, and then nothing of it is kept."""
    for write in writes:
        _apply(tx, write)


def _apply(tx: Tx, write: AnyWrite) -> None:  # noqa: PLR0912, PLR0915 - a table of the union's members
    match write:
        case TakePlacement():
            claims.take_placement(tx, write)
        case MoveHost():
            members.move_host(tx, write.host)
        case ResizePlacement():
            claims.resize_placement(tx, write.placement)
        case ReleasePlacement():
            claims.release_placement(tx, write.owner)
        case SetCapacity():
            claims.set_capacity(tx, write.capacity)
        case ClaimAddress():
            claims.claim_address(tx, write)
        case ReleaseAddresses():
            claims.release_addresses(tx, write.vm)
        case ClaimVni():
            claims.claim_vni(tx, write.network)
        case ReleaseVni():
            claims.release_vni(tx, write.network)
        case CreateChild():
            _create_child(tx, write)
        case ChangeChild():
            _change_child(tx, write)
        case DeleteChild():
            _delete_child(tx, write.id)
        case Amend():
            amend(tx, write)
        case PutDocument():
            _put_document(tx, write)
        case Tombstone():
            _tombstone(tx, write)
        case BuryOrphan():
            _bury_orphan(tx, write)
        case ForgetHost():
            _forget_host(tx, write.host)
        case PutToken():
            _put_token(tx, write.token)
        case RemoveToken():
            _remove_token(tx, write)
        case PutPassword():
            _put_password(tx, write)
        case RemovePassword():
            tx.run(delete(tables.password).where(tables.password.c.user == write.user))
        case PutEnrolment():
            put_enrolment(tx, _where_it_was(tx, write.enrolment))
        case SetLimits() | DropAccount() | Recharge() | Recount():
            quota.apply_write(tx, write)
        case Poke():
            poke(tx, write.resource)
        case Forget():
            _forget(tx, write.resource)


def _create_child(tx: Tx, wanted: CreateChild) -> None:
    if tx.resource(wanted.id):
        return
    row = Resource(
        id=wanted.id,
        kind=wanted.kind,
        project=wanted.project,
        name=wanted.name,
        labels={},
        generation=1,
        observed_generation=0,
        spec=wanted.spec,
        status=kind_named(wanted.kind).status(),
        owner=wanted.owner,
        created_at=tx.now,
        deleted_at=None,
        revision=tx.revision,
    )
    insert_resource(tx, row)
    poke(tx, row.id)


def _change_child(tx: Tx, wanted: ChangeChild) -> None:
    row = tx.resource(wanted.id)
    if row is None or row.deleted_at is not None or row.spec == wanted.spec:
        return
    after = msgspec.structs.replace(row, spec=wanted.spec, generation=row.generation + 1, revision=tx.revision)
    values = {"spec": to_json(after.spec).decode(), "generation": after.generation, "revision": after.revision}
    tx.run(update(tables.resource).where(tables.resource.c.id == after.id).values(**values))
    tx.put(after)
    poke(tx, after.id)


def _delete_child(tx: Tx, child: Id) -> None:
    tx.change(_DELETE_CHILD, of=child, now=tx.now, revision=tx.revision)
    if row := tx.resource(child):
        tx.put(row)
        poke(tx, child)


def _put_document(tx: Tx, wanted: PutDocument) -> None:
    row = Document(
        host=wanted.host,
        key=key_of(wanted.doc),
        owner=wanted.owner,
        doc=wanted.doc,
        gone=False,
        revision=tx.revision,
        request=wanted.request,
    )
    tx.change(
        _PUT_DOCUMENT,
        host=row.host,
        key=row.key,
        owner=row.owner,
        body=to_json(row.doc).decode(),
        revision=row.revision,
        request=row.request,
    )
    tx.put(row)


def _tombstone(tx: Tx, wanted: Tombstone) -> None:
    row = tx.row(_TOMBSTONE, of_host=wanted.host, of_key=wanted.key, revision=tx.revision, request=wanted.request)
    if row:
        tx.put(_document(row))


def _bury_orphan(tx: Tx, wanted: BuryOrphan) -> None:
    """Write a tombstone for what never had, or has lost, its document. Whoever has a row owns it, and keeps it."""
    c = tables.document.c
    row = Document(
        host=wanted.host,
        key=key_of(wanted.doc),
        owner=wanted.owner,
        doc=wanted.doc,
        gone=True,
        revision=tx.revision,
        request=wanted.request,
    )
    if tx.resource(wanted.owner) is not None:
        raise Conflict(f"{wanted.owner} has an owner by now", fix="audit the host again")
    there = tx.run(select(c.gone).where(c.host == row.host, c.key == row.key)).scalar_one_or_none()
    if there is not None:
        return
    values = {name: getattr(row, name) for name in ("host", "key", "owner", "gone", "revision", "request")}
    tx.run(insert(tables.document).values(**values, body=to_json(row.doc).decode()))
    tx.put(row)


def acknowledge(tx: Tx, host: HostId, gone: tuple[tuple[str, Revision], ...]) -> tuple[Id, ...]:
    """Drop tombstones that a host reported done, if they are still the ones it speaks of. Returns their owners."""
    owners = []
    for key, revision in gone:
        if row := tx.row(_ACKNOWLEDGE, of_host=host, of_key=key, upto=revision):
            document = _document(row)
            tx.gone(document)
            owners.append(document.owner)
    return tuple(owners)


def _document(row: tuple[Any, ...]) -> Document:
    return document_from(dict(zip(_DOCUMENT, row, strict=True)))


def _forget_host(tx: Tx, host: HostId) -> None:
    documents = tx.run(
        delete(tables.document).where(tables.document.c.host == host).returning(*tables.document.c)
    ).mappings()
    for row in documents.all():
        tx.gone(document_from(row))
        if tx.resource(Id(row["owner"])):  # an orphan's tombstone has an owner that is no more
            poke(tx, Id(row["owner"]))
    found = tx.run(
        delete(tables.enrolment).where(tables.enrolment.c.host == host).returning(tables.enrolment.c.body)
    ).scalar_one_or_none()
    if found:
        tx.gone(msgspec.json.decode(found, type=Enrolment))
    dropped = delete(tables.capacity).where(tables.capacity.c.host == host).returning(*claims.CAPACITY)
    if sold := tx.run(dropped).mappings().one_or_none():
        tx.gone(claims.capacity_row(sold))


def _put_token(tx: Tx, token: Token) -> None:
    tx.run(delete(tables.token).where(tables.token.c.digest == token.digest))
    tx.run(insert(tables.token).values(digest=token.digest, resource=token.resource, expires_at=token.expires_at))
    tx.put(token)


def _remove_token(tx: Tx, which: RemoveToken) -> None:
    table = tables.token
    where = [table.c.resource == which.resource, *([table.c.digest == which.digest] if which.digest else [])]
    for row in tx.run(delete(table).where(*where).returning(*table.c)).mappings().all():
        tx.gone(Token(**row))


def drop_expired(tx: Tx) -> None:
    """Drop sessions that expired a while ago: until then whoever shows one is told so."""
    table = tables.token
    users = select(tables.resource.c.id).where(tables.resource.c.kind == "user")
    old = (table.c.expires_at > 0, table.c.expires_at < tx.now - EXPIRED_KEPT_S, table.c.resource.in_(users))
    for row in tx.run(delete(table).where(*old).returning(*table.c)).mappings().all():
        tx.gone(Token(**row))


def _put_password(tx: Tx, wanted: PutPassword) -> None:
    """It is in no log of changes: nobody but who checks it reads it."""
    table = tables.password
    if tx.run(update(table).where(table.c.user == wanted.user).values(hash=wanted.hash.reveal())).rowcount == 0:
        tx.run(insert(table).values(user=wanted.user, hash=wanted.hash.reveal()))


def password_of(tx: Tx, user: Id) -> str | None:
    """Return the hash of a user's password."""
    table = tables.password
    return tx.run(select(table.c.hash).where(table.c.user == user)).scalar_one_or_none()


def _where_it_was(tx: Tx, wanted: Enrolment) -> Enrolment:
    """Keep what a host said at its hello: with a new join token its machines are still reached where they are."""
    table = tables.enrolment
    body = tx.run(select(table.c.body).where(table.c.host == wanted.host)).scalar_one_or_none()
    if body is None or wanted.vtep:
        return wanted
    found = msgspec.json.decode(body, type=Enrolment)
    return msgspec.structs.replace(wanted, vtep=found.vtep, underlay_mtu=found.underlay_mtu)


def put_enrolment(tx: Tx, enrolment: Enrolment) -> None:
    """Set how a host may join, or what it joined with."""
    table = tables.enrolment
    values = {"join_digest": enrolment.join_digest, "body": to_json(enrolment).decode()}
    if tx.run(update(table).where(table.c.host == enrolment.host).values(**values)).rowcount == 0:
        tx.run(insert(table).values(host=enrolment.host, **values))
    tx.put(enrolment)


def note_endpoint(tx: Tx, host: HostId, vtep: str, underlay_mtu: int) -> None:
    """Note where other hosts reach one. Nothing else of its enrolment changes: it may have been replaced just now."""
    table = tables.enrolment
    body = tx.run(select(table.c.body).where(table.c.host == host)).scalar_one_or_none()
    if body is not None:
        found = msgspec.json.decode(body, type=Enrolment)
        put_enrolment(tx, msgspec.structs.replace(found, vtep=vtep, underlay_mtu=underlay_mtu))


def use_join_token(tx: Tx, digest: str, given: Given) -> Enrolment | None:
    """Use up a join token and note the certificate it was given; None where it is unknown, used or out of date."""
    table = tables.enrolment
    body = tx.run(select(table.c.body).where(table.c.join_digest == digest)).scalar_one_or_none()
    found = msgspec.json.decode(body, type=Enrolment) if body else None
    if not digest or found is None or found.join_expires_at < tx.now:
        return None
    used = _with(msgspec.structs.replace(found, join_digest=""), given, before="")
    put_enrolment(tx, used)
    return used


def renewed(tx: Tx, host: HostId, shown: str, given: Given) -> Enrolment | None:
    """Note a host's next certificate; the one it showed stays good, since the answer may be lost on its way."""
    table = tables.enrolment
    body = tx.run(select(table.c.body).where(table.c.host == host)).scalar_one_or_none()
    found = msgspec.json.decode(body, type=Enrolment) if body else None
    if found is None or not found.certificate_serial:
        return None
    after = _with(found, given, before=shown)
    put_enrolment(tx, after)
    return after


def _with(enrolment: Enrolment, given: Given, before: str) -> Enrolment:
    return msgspec.structs.replace(
        enrolment,
        certificate_serial=given.serial,
        previous_serial=before,
        expires_at=given.expires_at,
        authority=given.authority,
        trusts=given.trusts,
        confirmed=False,
    )


def confirm(tx: Tx, host: HostId, serial: str) -> None:
    """Note that a host has shown the certificate that it was last given."""
    table = tables.enrolment
    body = tx.run(select(table.c.body).where(table.c.host == host)).scalar_one_or_none()
    found = msgspec.json.decode(body, type=Enrolment) if body else None
    if found is not None and found.certificate_serial == serial and not found.confirmed:
        put_enrolment(tx, msgspec.structs.replace(found, confirmed=True))


def _forget(tx: Tx, resource: Id) -> None:
    row = tx.resource(resource)
    if row is None:
        return
    tx.change(_FORGET, of=resource)
    tx.change(_LEAVE_QUEUE, of=resource)
    quota.charge(tx, row.project, before=row.counts, after={})
    closed = close_operations(tx, row, message="gone")
    chain.append(tx, happened(tx, row, "gone", "", closed))
    graves.bury(tx, row)
    if row.owner:
        poke(tx, row.owner)
    tx.gone(row)

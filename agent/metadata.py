"""The metadata service: what a guest may know of itself, at http://169.254.169.254/ in its network.

One listener per network, its socket made inside the network's router namespace. A guest is known by the address it
asks from, and before an answer goes out that address is tied to the guest's own tap: whoever borrowed it gets
nothing. Everything comes from the agent's disk, so it answers with the controller gone. The tree is EC2's
(docs.aws.amazon.com, "Instance metadata"), beside it cloud-init's NoCloud files. A session token as in IMDSv2 is given
to who asks; it is demanded where the machine or its project says so, since a guest that knows none would stay blank.
The packets that carry it have a TTL of their own (1), so that nothing behind a router in the guest gets one.

Under `dynamic/instance-identity` a guest finds what proves who it is (`common.attestation`): its host's signature, and
tokens for an audience (`token?audience=…`), under a certificate that the controller gave for this very guest.
"""

import asyncio
import hashlib
import hmac
import secrets
import socket
import time
from asyncio.trsock import TransportSocket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from ipaddress import IPv4Network
from typing import NamedTuple, TypeAlias

import msgspec
import structlog
from aiohttp import web

from common.attestation import ISSUER, Claims, Voucher
from common.codec import to_json
from common.documents import Desired, DomainDoc, GuestMetadata, NetworkDoc, PortDoc, VolumeDoc
from common.errors import SkerryError
from common.ids import HostId, Id

log = structlog.get_logger(__name__)

VERSIONS = ("2009-04-04", "2016-09-02", "2018-09-24", "2021-03-23", "latest")
"""All show the same tree. cloud-init 22.4 asks for 2021-03-23, 2018-09-24 and 2016-09-02 first, then 2009-04-04."""

TOKEN_TTL_MAX_S = 21600
IDENTITY_TTL_S = 300
IDENTITY_TTL_MAX_S = 3600
_TOKEN = "x-aws-ec2-metadata-token"  # noqa: S105 - a header's name
_TOKEN_TTL = "x-aws-ec2-metadata-token-ttl-seconds"  # noqa: S105 - a header's name

_CONNECTIONS = 256
"""Open at once per network: a tenant can spend its own network's share, and nobody else's."""
_CONNECTION_S = 60.0
"""No connection lives longer: a guest that was cut off never closes its own."""
_BACKLOG = 64
_REMEMBERED = 4096
"""Guests of which it is known when they first asked."""
_PIN_TIMEOUT_S = 10.0


class GuestNic(msgspec.Struct, frozen=True, kw_only=True):
    """One NIC of a guest."""

    index: int
    network: Id
    mac: str
    address: str
    cidr: str


class Guest(msgspec.Struct, frozen=True, kw_only=True):
    """A guest of this host, and the NIC it asked through."""

    vm: Id
    metadata: GuestMetadata
    asked: GuestNic
    nics: tuple[GuestNic, ...]
    domain: str
    """The DNS domain of the network it asked through."""
    image: str
    """The digest of what it booted from; empty: unknown."""
    size: str


Lookup = Callable[[Id, str], Guest | None]
"""(network, address) -> the guest with that address, if it is on this host."""

VoucherOf = Callable[[Id], Voucher | None]
"""What this host may sign for a guest with; None: the controller has not vouched for it yet."""

Pin = Callable[[Id, Guest], Awaitable[bool]]
"""Tie the guest's address and MAC to its tap; False where it has none plugged in."""

Tree: TypeAlias = "Mapping[str, Tree | str]"


class Asked(NamedTuple):
    """A request, as far as it matters."""

    method: str
    path: str
    token: str | None = None
    token_ttl: str | None = None
    forwarded: bool = False
    query: Mapping[str, str] = {}


class Answer(NamedTuple):
    """A status, a body, and headers of its own."""

    status: int
    body: str
    headers: Mapping[str, str] = {}
    hops: int | None = None
    """The TTL of the packets that carry it, where it is not the usual one."""


class AskedAt(NamedTuple):
    """When a guest was first answered, epoch seconds, and when with a key; None: never since the agent started."""

    first: float | None = None
    key: float | None = None


def find_guest(items: Iterable[Desired], host: HostId, network: Id, address: str) -> Guest | None:
    """Find the guest of this host that has an address in a network, among the documents on the agent's disk."""
    live = [item.doc for item in items if not item.gone]
    networks = {doc.id: doc for doc in live if isinstance(doc, NetworkDoc)}
    ports = [doc for doc in live if isinstance(doc, PortDoc) and doc.host == host]
    port = next((one for one in ports if one.network == network and one.address == address), None)
    if port is None:
        return None
    domain = next((doc for doc in live if isinstance(doc, DomainDoc) and doc.id == port.vm), None)
    if domain is None or network not in networks:
        return None
    nics = tuple(
        GuestNic(
            index=one.index, network=one.network, mac=one.mac, address=one.address, cidr=networks[one.network].cidr
        )
        for one in sorted(ports, key=lambda one: one.index)
        if one.vm == port.vm and one.network in networks
    )
    root = next((doc for doc in live if isinstance(doc, VolumeDoc) and doc.id in domain.volumes[:1]), None)
    image = domain.kernel or (root.image if root is not None else None)
    return Guest(
        vm=port.vm,
        metadata=domain.metadata,
        asked=next(nic for nic in nics if nic.index == port.index),
        nics=nics,
        domain=networks[network].domain,
        image="" if image is None else image.digest,
        size=f"{domain.vcpus}cpu.{domain.memory_mib}mib",
    )


# --- the tree -----------------------------------------------------------------------------------------------------


def tree(guest: Guest, voucher: Voucher | None = None) -> Tree:
    """Return all that a guest may read below a version: a mapping is a directory, a string a leaf."""
    document = _identity(guest)
    signed = {"certificate": voucher.pem, "signature": voucher.sign_bytes(document.encode())} if voucher else {}
    found: dict[str, Tree | str] = {
        "dynamic": {"instance-identity": {"document": document, **signed}},
        "meta-data": _meta_data(guest),
    }
    if guest.metadata.user_data:
        found["user-data"] = guest.metadata.user_data
    return found


def nocloud(guest: Guest) -> Tree:
    """Return the NoCloud files (`ds=nocloud-net;s=http://169.254.169.254/nocloud/`). JSON is YAML too."""
    meta = {
        "instance-id": guest.metadata.instance_id,
        "local-hostname": guest.metadata.hostname,
        "public-keys": [key for _, key in guest.metadata.public_keys],
    }
    return {
        "meta-data": to_json(meta).decode() + "\n",
        "user-data": guest.metadata.user_data,
        "vendor-data": "",
    }


def _meta_data(guest: Guest) -> Tree:
    metadata, nic = guest.metadata, guest.asked
    name = f"{metadata.hostname}.{guest.domain}"
    found: dict[str, Tree | str] = {
        "ami-id": _ami(guest),
        "ami-launch-index": "0",
        "hostname": name,
        "instance-id": metadata.instance_id,
        "instance-type": guest.size,
        "local-hostname": name,
        "local-ipv4": nic.address,
        "mac": nic.mac,
        "network": {"interfaces": {"macs": {one.mac: _interface(guest, one) for one in guest.nics}}},
        "placement": {"availability-zone": metadata.host},
        "reservation-id": metadata.instance_id,
    }
    if metadata.public_keys:
        found["public-keys"] = {
            str(number): {"openssh-key": key} for number, (_, key) in enumerate(metadata.public_keys)
        }
    return found


def _interface(guest: Guest, nic: GuestNic) -> Tree:
    return {
        "device-number": str(nic.index),
        "interface-id": f"{guest.vm}.{nic.index}",
        "local-hostname": guest.metadata.hostname,
        "local-ipv4s": nic.address,
        "mac": nic.mac,
        "owner-id": guest.metadata.project,
        "subnet-id": nic.network,
        "subnet-ipv4-cidr-block": str(IPv4Network(nic.cidr, strict=False)),
    }


def _identity(guest: Guest) -> str:
    return to_json(
        {
            "accountId": guest.metadata.project,
            "availabilityZone": guest.metadata.host,
            "imageId": _ami(guest),
            "instanceId": guest.metadata.instance_id,
            "instanceType": guest.size,
            "privateIp": guest.asked.address,
            "region": "skerry",
            "version": "2017-09-30",
        }
    ).decode()


def _ami(guest: Guest) -> str:
    return f"ami-{guest.image.removeprefix('sha256:')[:17]}" if guest.image else "ami-none"


def listing(node: Tree, path: tuple[str, ...], guest: Guest) -> str:
    """Return a directory as EC2 lists it: a line per entry, directories with a slash, keys as `0=name`."""
    if path == ("meta-data", "public-keys"):
        return "\n".join(f"{number}={name}" for number, (name, _) in enumerate(guest.metadata.public_keys))
    return "\n".join(name if isinstance(node[name], str) else f"{name}/" for name in sorted(node))


# --- answers ------------------------------------------------------------------------------------------------------


class Tokens:
    """Tokens that need no table: each carries its end and a MAC over it and the guest it was given to."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def give(self, guest: Guest, until: int) -> str:
        """Return a token for this guest, good until that second."""
        return f"{until:x}.{self._sign(guest, until)}"

    def good(self, token: str, guest: Guest, now: float) -> bool:
        """Say whether the token was given to this guest and has not run out."""
        end, _, signature = token.partition(".")
        try:
            until = int(end, 16)
        except ValueError:
            return False
        expected = self._sign(guest, until).encode()
        return hmac.compare_digest(signature.encode(errors="replace"), expected) and now < until

    def _sign(self, guest: Guest, until: int) -> str:
        return hmac.new(self._key, f"{guest.vm} {until}".encode(), hashlib.sha256).hexdigest()


def answer(asked: Asked, guest: Guest, tokens: Tokens, now: float, voucher: Voucher | None = None) -> Answer:
    """Answer one request of one guest. Pure."""
    path = tuple(part for part in asked.path.split("/") if part)
    if path == (VERSIONS[-1], "api", "token"):
        return _token(asked, guest, tokens, now)
    if asked.method not in {"GET", "HEAD"}:
        return Answer(405, "Only GET is allowed here; PUT only on /latest/api/token.\n", {"Allow": "GET, HEAD"})
    if asked.token is not None and not tokens.good(asked.token, guest, now):
        return Answer(401, "The metadata token is wrong or has run out: PUT /latest/api/token gives another.\n")
    if asked.token is None and guest.metadata.token_required:
        return Answer(401, "This machine's metadata is given only with a token: PUT /latest/api/token gives one.\n")
    match path:
        case ():
            return Answer(200, "\n".join(VERSIONS))
        case (version, "dynamic", "instance-identity", "token") if version in VERSIONS:
            return _identity_token(asked, guest, now, voucher)
        case ("nocloud", *rest):
            return _walk(nocloud(guest), tuple(rest), guest)
        case (version, *rest) if version in VERSIONS:
            return _walk(tree(guest, voucher if "instance-identity" in rest else None), tuple(rest), guest)
        case _:
            return _missing(path)


def _walk(root: Tree, path: tuple[str, ...], guest: Guest) -> Answer:
    node: Tree | str = root
    for part in path:
        if isinstance(node, str) or part not in node:
            return _missing(path)
        node = node[part]
    return Answer(200, node if isinstance(node, str) else listing(node, path, guest))


def _missing(path: tuple[str, ...]) -> Answer:
    return Answer(404, f"There is no metadata at /{'/'.join(path)}.\n")


def _token(asked: Asked, guest: Guest, tokens: Tokens, now: float) -> Answer:
    if asked.method != "PUT":
        return Answer(405, "Ask for a token with PUT.\n", {"Allow": "PUT"})
    if asked.forwarded:
        return Answer(403, "A token is not given through a proxy.\n")
    ttl = asked.token_ttl or ""
    if not ttl.isascii() or not ttl.isdigit() or not 1 <= int(ttl[:9]) <= TOKEN_TTL_MAX_S:
        return Answer(400, f"{_TOKEN_TTL} must be a number of seconds, 1 to {TOKEN_TTL_MAX_S}.\n")
    hops = guest.metadata.token_hops
    return Answer(200, tokens.give(guest, int(now) + int(ttl)), {_TOKEN_TTL: ttl}, hops)


def _identity_token(asked: Asked, guest: Guest, now: float, voucher: Voucher | None) -> Answer:
    audience, ttl = asked.query.get("audience", ""), asked.query.get("ttl", str(IDENTITY_TTL_S))
    if not audience or len(audience) > 255:
        return Answer(400, "Say whom it is for: ?audience=NAME, up to 255 characters.\n")
    if not ttl.isascii() or not ttl.isdigit() or not 1 <= int(ttl[:9]) <= IDENTITY_TTL_MAX_S:
        return Answer(400, f"ttl is a number of seconds, 1 to {IDENTITY_TTL_MAX_S}.\n")
    if voucher is None:
        return Answer(503, "The controller has not vouched for this machine yet: try again.\n", {"Retry-After": "5"})
    claims = Claims(
        iss=ISSUER,
        sub=guest.vm,
        project=voucher.project,
        aud=audience,
        iat=int(now),
        exp=min(int(now) + int(ttl), int(voucher.ends_at)),
        host=guest.metadata.host,
        name=guest.metadata.hostname,
        image=guest.image,
    )
    return Answer(200, voucher.sign(claims))


# --- the service --------------------------------------------------------------------------------------------------


class _Listener(NamedTuple):
    inode: int
    server: asyncio.Server
    web: web.Server


class MetadataService:
    """The listeners of one agent, one per network."""

    def __init__(self, lookup: Lookup, pin: Pin, voucher: VoucherOf = lambda _vm: None) -> None:
        self._lookup = lookup
        self._voucher = voucher
        self._pin = pin
        self._tokens = Tokens(secrets.token_bytes(32))
        self._listeners: dict[Id, _Listener] = {}
        self._asked: dict[Id, AskedAt] = {}

    def asked(self, vm: Id) -> AskedAt:
        """Return when a guest of this host first asked."""
        return self._asked.get(vm, AskedAt())

    def _note(self, vm: Id, path: str, found: Answer) -> None:
        """Note what a guest was answered; of many guests only the newest are remembered."""
        if found.status != 200 or path.endswith("/api/token"):
            return
        now, before = time.time(), self._asked.pop(vm, AskedAt())
        has_key = path.endswith(("/openssh-key", "/nocloud/meta-data"))
        self._asked[vm] = AskedAt(before.first or now, before.key or (now if has_key else None))
        if len(self._asked) > _REMEMBERED:
            del self._asked[next(iter(self._asked))]

    def listening(self, network: Id) -> int | None:
        """Return the inode of the namespace whose socket serves this network, None where none does."""
        found = self._listeners.get(network)
        return found.inode if found is not None and found.server.is_serving() else None

    async def open(self, network: Id, bound: socket.socket, inode: int) -> None:
        """Serve a network on a bound socket, made in the namespace with that inode. Takes the socket over."""
        await self.close(network)
        handler = web.Server(self._handler(network), access_log=None)

        def connect() -> asyncio.Protocol:
            if len(handler.connections) >= _CONNECTIONS:
                return _Refuser()
            connection = handler()
            asyncio.get_running_loop().call_later(_CONNECTION_S, connection.force_close)
            return connection

        bound.setblocking(False)
        server = await asyncio.get_running_loop().create_server(connect, sock=bound, backlog=_BACKLOG)
        self._listeners[network] = _Listener(inode, server, handler)

    async def close(self, network: Id) -> None:
        """Stop serving a network; its socket and connections are closed."""
        found = self._listeners.pop(network, None)
        if found is not None:
            found.server.close()
            await found.web.shutdown(timeout=1.0)

    async def close_all(self) -> None:
        """Stop serving."""
        for network in tuple(self._listeners):
            await self.close(network)

    def _handler(self, network: Id) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            found = await self._answer(network, request)
            if found.hops is not None and request.transport is not None:
                bound: TransportSocket = request.transport.get_extra_info("socket")
                bound.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, found.hops)
            return web.Response(
                status=found.status, text=found.body, headers=_closing(found), content_type="text/plain"
            )

        return handle

    async def _answer(self, network: Id, request: web.BaseRequest) -> Answer:
        peer = request.transport.get_extra_info("peername") if request.transport is not None else None
        guest = self._lookup(network, peer[0]) if peer else None
        if guest is None:
            return Answer(404, "There is no metadata for this address.\n")
        try:
            async with asyncio.timeout(_PIN_TIMEOUT_S):
                pinned = await self._pin(network, guest)
        except (SkerryError, TimeoutError) as err:
            log.warning("metadata not answered", vm=guest.vm, network=network, reason=str(err))
            return Answer(503, "The metadata service can't tell just now who is asking: try again.\n")
        if not pinned:
            return Answer(404, "There is no metadata for this address.\n")
        asked = Asked(
            method=request.method,
            path=request.path,
            token=request.headers.get(_TOKEN),
            token_ttl=request.headers.get(_TOKEN_TTL),
            forwarded="X-Forwarded-For" in request.headers,
            query=dict(request.query),
        )
        found = answer(asked, guest, self._tokens, time.time(), self._voucher(guest.vm))
        self._note(guest.vm, asked.path, found)
        return found


def _closing(found: Answer) -> dict[str, str]:
    """A connection whose TTL was changed ends with its answer: the next one has the usual TTL."""
    return {**found.headers, **({"Connection": "close"} if found.hops is not None else {})}


class _Refuser(asyncio.Protocol):
    """Closes a connection that is one too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()

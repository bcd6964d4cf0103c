"""What guests are told of themselves: the tree, tokens, who is who, and a real listener on loopback."""

import asyncio
import socket
from collections.abc import AsyncIterator

import aiohttp
import msgspec
import pytest

from agent.metadata import Asked, Guest, GuestNic, MetadataService, Tokens, answer, find_guest
from common import names
from common.codec import from_json
from common.documents import (
    AnyDoc,
    Desired,
    DomainDoc,
    GuestMetadata,
    ImageRef,
    NetworkDoc,
    PortDoc,
    VolumeDoc,
    key_of,
)
from common.errors import Temporary
from common.ids import HostId, Id, Revision, new_id

HERE, THERE = HostId(new_id("host")), HostId(new_id("host"))
NET, OTHER_NET = new_id("net"), new_id("net")
VM = Id("vm-0123456789ab")
NOW = 1_000_000.0
TOKENS = Tokens(b"k" * 32)


def metadata(vm: Id, name: str) -> GuestMetadata:
    return GuestMetadata(
        instance_id=vm, hostname=name, project="acme",
        public_keys=(("me", "ssh-ed25519 AAAA me"), ("ci", "ssh-rsa BB")),
        user_data="#cloud-config\n", host="host-a",
    )  # fmt: skip


GUEST = Guest(
    vm=VM,
    metadata=metadata(VM, "web"),
    asked=GuestNic(index=0, network=NET, mac="02:00:00:00:00:0a", address="10.20.0.5", cidr="10.20.0.0/24"),
    nics=(
        GuestNic(index=0, network=NET, mac="02:00:00:00:00:0a", address="10.20.0.5", cidr="10.20.0.0/24"),
        GuestNic(index=1, network=OTHER_NET, mac="02:00:00:00:00:0b", address="10.30.0.5", cidr="10.30.0.0/16"),
    ),
    domain="lan.acme.internal",
    image="sha256:" + "ab" * 32,
    size="1cpu.512mib",
)


def get(path: str, guest: Guest = GUEST, **more: str) -> tuple[int, str]:
    found = answer(Asked(method="GET", path=path, **more), guest, TOKENS, NOW)  # type: ignore[arg-type]
    return found.status, found.body


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/latest/", "dynamic/\nmeta-data/\nuser-data"),
        ("/latest", "dynamic/\nmeta-data/\nuser-data"),
        ("/latest/meta-data/instance-id", VM),
        ("/2009-04-04/meta-data/instance-id", VM),
        ("/2021-03-23//meta-data/instance-id", VM),
        ("/latest/meta-data/local-ipv4", "10.20.0.5"),
        ("/latest/meta-data/mac", "02:00:00:00:00:0a"),
        ("/latest/meta-data/hostname", "web.lan.acme.internal"),
        ("/latest/meta-data/local-hostname", "web.lan.acme.internal"),
        ("/latest/meta-data/ami-id", "ami-" + ("ab" * 9)[:17]),
        ("/latest/meta-data/instance-type", "1cpu.512mib"),
        ("/latest/meta-data/placement/", "availability-zone"),
        ("/latest/meta-data/placement/availability-zone", "host-a"),
        ("/latest/meta-data/public-keys/", "0=me\n1=ci"),
        ("/latest/meta-data/public-keys/0/", "openssh-key"),
        ("/latest/meta-data/public-keys/1/openssh-key", "ssh-rsa BB"),
        ("/latest/meta-data/network/interfaces/macs/", "02:00:00:00:00:0a/\n02:00:00:00:00:0b/"),
        ("/latest/meta-data/network/interfaces/macs/02:00:00:00:00:0b/subnet-ipv4-cidr-block", "10.30.0.0/16"),
        ("/latest/user-data", "#cloud-config\n"),
        ("/nocloud/user-data", "#cloud-config\n"),
        ("/nocloud/vendor-data", ""),
    ],
)
def test_the_tree_shows(path: str, body: str) -> None:
    assert get(path) == (200, body)


def test_the_root_lists_the_versions() -> None:
    assert {"latest", "2009-04-04", "2021-03-23"} <= set(get("/")[1].splitlines())


def test_nocloud_metadata_carries_id_name_and_keys() -> None:
    class NoCloud(msgspec.Struct, rename="kebab"):
        instance_id: str
        local_hostname: str
        public_keys: tuple[str, ...]

    found = from_json(get("/nocloud/meta-data")[1], NoCloud, "meta-data")
    assert (found.instance_id, found.local_hostname) == (VM, "web")
    assert found.public_keys == ("ssh-ed25519 AAAA me", "ssh-rsa BB")


@pytest.mark.parametrize(
    "path", ["/1999-01-01/meta-data/", "/latest/meta-data/nothing", "/latest/meta-data/mac/more", "/nocloud/x", "/x"]
)
def test_what_is_not_there_is_not_found(path: str) -> None:
    assert get(path)[0] == 404


def test_a_guest_without_user_data_and_keys_has_neither_entry() -> None:
    bare = msgspec.structs.replace(
        GUEST, metadata=msgspec.structs.replace(GUEST.metadata, user_data="", public_keys=())
    )
    assert get("/latest/user-data", bare)[0] == 404
    assert "public-keys" not in get("/latest/meta-data/", bare)[1]
    assert get("/nocloud/user-data", bare) == (200, "")


def test_everything_listed_can_be_read() -> None:
    """As cloud-init walks it: down every slash."""
    pending, leaves = ["/latest/"], 0
    while pending:
        path = pending.pop()
        status, body = get(path)
        assert status == 200, path
        if not path.endswith("/"):
            leaves += 1
            continue
        entries = [line.partition("=")[0] + "/" if "=" in line else line for line in body.splitlines()]
        pending += [path + entry for entry in entries]
    assert leaves >= 20


def token(ttl: str | None = "60", *, guest: Guest = GUEST, forwarded: bool = False) -> tuple[int, str]:
    asked = Asked(method="PUT", path="/latest/api/token", token_ttl=ttl, forwarded=forwarded)
    found = answer(asked, guest, TOKENS, NOW)
    return found.status, found.body


def test_a_token_is_good_until_it_runs_out() -> None:
    status, text = token("60")
    assert status == 200
    asked = Asked(method="GET", path="/latest/meta-data/mac", token=text)
    assert answer(asked, GUEST, TOKENS, NOW + 59).status == 200
    assert answer(asked, GUEST, TOKENS, NOW + 61).status == 401


@pytest.mark.parametrize("wrong", ["", "x", "ffffffff.", "ffffffff.00", "é.é", "-1.x"])
def test_a_wrong_token_is_refused(wrong: str) -> None:
    assert get("/latest/meta-data/mac", token=wrong)[0] == 401


def test_a_token_of_another_guest_is_refused() -> None:
    other = msgspec.structs.replace(GUEST, vm=new_id("vm"))
    assert get("/latest/meta-data/mac", token=token(guest=other)[1])[0] == 401


@pytest.mark.parametrize("ttl", [None, "", "0", "21601", "-1", "1.5", "²", "9" * 5000])
def test_a_token_needs_a_lifetime_in_bounds(ttl: str | None) -> None:
    assert token(ttl)[0] == 400


def test_no_token_through_a_proxy() -> None:
    assert token(forwarded=True)[0] == 403


@pytest.mark.parametrize(("method", "path"), [("POST", "/latest/"), ("PUT", "/latest/x"), ("GET", "/latest/api/token")])
def test_other_methods_are_not_allowed(method: str, path: str) -> None:
    assert answer(Asked(method=method, path=path), GUEST, TOKENS, NOW).status == 405


# --- who is who ---------------------------------------------------------------------------------------------------


def port(vm: Id, index: int, network: Id, address: str, host: HostId = HERE) -> PortDoc:
    return PortDoc(
        vm=vm, index=index, network=network, mac=names.mac(vm, index), address=address, hostname="web", host=host,
        vtep="10.0.0.1",
    )  # fmt: skip


def network(of: Id, cidr: str) -> NetworkDoc:
    return NetworkDoc(id=of, vni=1, cidr=cidr, gateway="10.20.0.1", mtu=1450, domain="lan.acme.internal")


def domain(vm: Id, volumes: tuple[Id, ...] = ()) -> DomainDoc:
    return DomainDoc(
        id=vm, name="web", project="acme", vcpus=2, memory_mib=512, kernel=None, volumes=volumes, nics=(),
        power="running", start_generation=1, boot_generation=1, restart="never", stop_grace_s=1, nocloud=False,
        metadata=metadata(vm, "web"),
    )  # fmt: skip


def items(*docs: AnyDoc, gone: tuple[AnyDoc, ...] = ()) -> list[Desired]:
    live = [Desired(key=key_of(doc), revision=Revision(1), doc=doc) for doc in docs]
    return live + [Desired(key=key_of(doc), revision=Revision(1), doc=doc, gone=True) for doc in gone]


VOLUME = VolumeDoc(id=new_id("vol"), size_gib=1, image=ImageRef(digest="sha256:cd", format="qcow2", size_bytes=1))
NETWORKS = (network(NET, "10.20.0.0/24"), network(OTHER_NET, "10.20.0.0/16"))
DOCS = (*NETWORKS, port(VM, 0, NET, "10.20.0.5"), port(VM, 1, OTHER_NET, "10.20.0.9"), domain(VM, (VOLUME.id,)), VOLUME)


def test_a_guest_is_found_by_network_and_address_with_all_its_nics() -> None:
    guest = find_guest(items(*DOCS), HERE, OTHER_NET, "10.20.0.9")
    assert guest is not None
    assert (guest.vm, guest.asked.index, guest.image, guest.size) == (VM, 1, "sha256:cd", "2cpu.512mib")
    assert [nic.address for nic in guest.nics] == ["10.20.0.5", "10.20.0.9"]


def test_the_same_address_in_another_network_is_another_guest() -> None:
    assert find_guest(items(*DOCS), HERE, OTHER_NET, "10.20.0.5") is None


def test_a_guest_of_another_host_is_not_found() -> None:
    docs = (*NETWORKS, port(VM, 0, NET, "10.20.0.5", THERE), domain(VM))
    assert find_guest(items(*docs), HERE, NET, "10.20.0.5") is None


@pytest.mark.parametrize("gone", [DOCS[2], DOCS[4], DOCS[0]])
def test_a_tombstoned_guest_is_not_found(gone: AnyDoc) -> None:
    live = tuple(doc for doc in DOCS if doc is not gone)
    assert find_guest(items(*live, gone=(gone,)), HERE, NET, "10.20.0.5") is None


# --- the listener -------------------------------------------------------------------------------------------------


class Pins:
    """Answers whether a guest's address could be tied to its tap."""

    def __init__(self) -> None:
        self.result: bool | Temporary = True

    async def __call__(self, _network: Id, _guest: Guest) -> bool:
        if isinstance(self.result, Temporary):
            raise self.result
        return self.result


class Served:
    """A service that listens on loopback for one network, in which 127.0.0.1 is the guest."""

    def __init__(self) -> None:
        self.pins = Pins()
        self.service = MetadataService(
            lambda of, address: GUEST if (of, address) == (NET, "127.0.0.1") else None, self.pins
        )

    async def open(self, network: Id) -> str:
        bound = socket.socket()
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        await self.service.open(network, bound, 42)
        return f"http://127.0.0.1:{port}"


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    one = Served()
    yield one
    await one.service.close_all()


async def status(url: str, method: str = "GET", **headers: str) -> int:
    async with aiohttp.ClientSession() as session, session.request(method, url, headers=headers) as response:
        return response.status


async def test_a_guest_is_answered_over_http(served: Served) -> None:
    url = await served.open(NET)
    async with aiohttp.ClientSession() as session:
        async with session.put(
            f"{url}/latest/api/token", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"}
        ) as response:
            text = await response.text()
            assert response.headers["X-aws-ec2-metadata-token-ttl-seconds"] == "60"
        headers = {"X-aws-ec2-metadata-token": text}
        async with session.get(f"{url}/latest/meta-data/instance-id", headers=headers) as response:
            assert (response.status, await response.text()) == (200, VM)


async def test_an_unknown_address_is_told_nothing(served: Served) -> None:
    assert await status(await served.open(OTHER_NET) + "/latest/meta-data/") == 404


async def test_an_address_without_its_tap_is_told_nothing(served: Served) -> None:
    url = await served.open(NET)
    served.pins.result = False
    assert await status(url + "/latest/meta-data/") == 404
    served.pins.result = Temporary("netlink is busy")
    assert await status(url + "/latest/meta-data/") == 503


async def test_one_network_cannot_open_more_than_its_share_of_connections(served: Served) -> None:
    url = await served.open(NET)
    port = int(url.rpartition(":")[2])
    held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(256)]
    try:
        with pytest.raises(aiohttp.ClientError):
            await status(url + "/latest/")
    finally:
        for _, writer in held:
            writer.close()
            await writer.wait_closed()
    assert await status(url + "/latest/") == 200


async def test_opening_again_replaces_and_closing_ends_the_listener(served: Served) -> None:
    first = await served.open(NET)
    second = await served.open(NET)
    assert served.service.listening(NET) == 42
    assert await status(second + "/latest/") == 200
    with pytest.raises(aiohttp.ClientError):
        await status(first + "/latest/")
    await served.service.close(NET)
    assert served.service.listening(NET) is None

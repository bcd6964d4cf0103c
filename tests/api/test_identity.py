"""What a machine says of itself: vouched for over real TLS, signed by its host, believed by who knows public keys."""

import base64
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from api_world import world as api_world
from click.testing import CliRunner
from fleet_bench import World

from agent import metadata
from agent.attest import Vouchers
from agent.dial import Dialer
from agent.metadata import Asked, Guest, GuestNic, Tokens, answer
from common import attestation
from common.attestation import Claims, Voucher, authorities_of, public_keys, verify, verify_document
from common.codec import to_json
from common.documents import GuestMetadata
from common.errors import Denied, Invalid, Temporary
from common.ids import HostId, Id
from common.kinds.vm import VmSpec
from controller.cli.main import root
from controller.kinds.vm import _needs_token
from controller.pki.authority import Authority
from controller.pki.certificates import MACHINE_DAYS, Machine
from controller.store.rows import Capacity
from controller.store.writes import SetCapacity
from tests.store.desk import take
from tests.unit.rows import a_vm

PROJECT = "shop"
TOKENS = Tokens(b"k" * 32)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path / "one")
    async with world.up():
        yield world


async def a_machine(world: World, name: str) -> Id:
    """Have a machine in the books, as far as vouching for it is concerned."""
    for kind, project, named, spec in (
        ("project", "", PROJECT, {}), ("size", "", "small", {"vcpus": 1, "memory_mib": 512, "disk_gib": 1}),
        ("network", PROJECT, "default", {}), ("image", PROJECT, "disk", {"format": "raw"}),
    ):  # fmt: skip
        if world.store.seen.named(kind, project, named) is None:
            await world.desk.create(kind, project, named, **spec)
    row = await world.desk.create("vm", PROJECT, name, image="disk", size="small")
    return row.id


async def place(world: World, host: HostId, vm: Id) -> None:
    room = Capacity(host=host, vcpus=8, memory_mib=8192, disk_gib=100)
    await world.desk.write(SetCapacity(capacity=room), take(host, vm))


def guest(vm: Id, **more: object) -> Guest:
    nic = GuestNic(index=0, network=Id("net-1"), mac="02:00:00:00:00:0a", address="10.20.0.5", cidr="10.20.0.0/24")
    told = GuestMetadata(
        instance_id=vm, hostname="web", project=PROJECT, public_keys=(), user_data="", host="h1", **more
    )  # type: ignore[arg-type]
    return Guest(vm=vm, metadata=told, asked=nic, nics=(nic,), domain="d", image="sha256:ab", size="s")


def token_for(voucher: Voucher | None, vm: Id, now: float, **query: str) -> metadata.Answer:
    asked = Asked(method="GET", path="/latest/dynamic/instance-identity/token", query=query)
    return answer(asked, guest(vm), TOKENS, now, voucher)


# --- from the controller's word to a service's belief -------------------------------------------------------------


async def test_a_machine_is_believed_by_who_knows_only_the_public_keys(world: World, tmp_path: Path) -> None:
    identity = await world.joined("h1")
    vm = await a_machine(world, "web")
    await place(world, identity.host, vm)
    async with Dialer(identity) as dialer:
        vouchers = Vouchers(tmp_path / "vouchers", dialer, lambda: {vm}, world.clock)
        await vouchers.refresh()
    voucher = vouchers.of(vm)
    assert voucher is not None
    found = token_for(voucher, vm, world.clock(), audience="https://vault.example.org", ttl="60")
    assert found.status == 200

    keys = msgspec.json.encode({"keys": list(public_keys(world.authority.trusted_pem))})
    claims = verify(found.body, authorities_of(keys), "https://vault.example.org", world.clock())
    assert (claims.sub, claims.project, claims.host, claims.exp) == (vm, PROJECT, "h1", int(world.clock()) + 60)

    async with Dialer(msgspec.structs.replace(identity, url="https://127.0.0.1:1")) as nowhere:
        again = Vouchers(tmp_path / "vouchers", nowhere, lambda: {vm}, world.clock)
        await again.refresh()  # nothing is asked for while the voucher is fresh
        assert again.of(vm) is not None, "it is on the disk: the controller may be gone"
        world.clock.now += MACHINE_DAYS * 86400 - 3600
        with pytest.raises(Temporary):
            await again.refresh()
        assert again.of(vm) is not None
        world.clock.now += 7200
        assert again.of(vm) is None
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "vouchers").iterdir()} == {0o600}


async def test_a_host_is_given_no_word_for_a_machine_elsewhere(world: World, tmp_path: Path) -> None:
    liar, other = await world.joined("liar"), await world.joined("other")
    vm, unplaced = await a_machine(world, "web"), await a_machine(world, "db")
    await place(world, other.host, vm)
    async with Dialer(liar) as dialer:
        vouchers = Vouchers(tmp_path / "vouchers", dialer, lambda: {vm, unplaced, Id("vm-00000000zzzz")}, world.clock)
        await vouchers.refresh()
        assert [vouchers.of(one) for one in (vm, unplaced)] == [None, None]
    await world.until_event("host.lied", liar.host, "asked to speak for")


async def test_vouchers_of_machines_that_are_gone_go_from_the_disk(world: World, tmp_path: Path) -> None:
    identity = await world.joined("h1")
    vm = await a_machine(world, "web")
    await place(world, identity.host, vm)
    wanted = {vm}
    async with Dialer(identity) as dialer:
        vouchers = Vouchers(tmp_path / "vouchers", dialer, lambda: wanted, world.clock)
        await vouchers.refresh()
        wanted.clear()
        await vouchers.refresh()
    assert vouchers.of(vm) is None
    assert [path.name for path in (tmp_path / "vouchers").iterdir()] == ["key.pem"]


# --- what is not believed -----------------------------------------------------------------------------------------

NOW = 1_800_000_000.0
VM = Id("vm-0123456789ab")


class Signed(msgspec.Struct):
    authority: Authority
    voucher: Voucher
    claims: Claims

    @property
    def authorities(self) -> str:
        return self.authority.ca_pem


@pytest.fixture
def signed(tmp_path: Path) -> Signed:
    authority = Authority.ensure(tmp_path / "pki", NOW)
    key = attestation.new_key()
    machine = Machine(id=VM, project=PROJECT)
    voucher = Voucher(authority.sign_machine(attestation.request_for(key), machine, NOW), key)
    claims = Claims(
        iss="urn:skerry", sub=VM, project=PROJECT, aud="vault", iat=int(NOW), exp=int(NOW) + 300, host="h1",
        name="web", image="",
    )  # fmt: skip
    return Signed(authority, voucher, claims)


def test_a_token_for_another_audience_is_refused(signed: Signed) -> None:
    with pytest.raises(Denied, match="is for 'vault', not for 'bank'"):
        verify(signed.voucher.sign(signed.claims), signed.authorities, "bank", NOW)


@pytest.mark.parametrize("after", [-3600, 361])
def test_a_token_out_of_its_time_is_refused(signed: Signed, after: float) -> None:
    token = signed.voucher.sign(signed.claims)
    assert verify(token, signed.authorities, "vault", NOW + 300) == signed.claims
    with pytest.raises(Denied, match="is good from"):
        verify(token, signed.authorities, "vault", NOW + after)


@pytest.mark.parametrize("change", [{"sub": "vm-zzzzzzzzzzzz"}, {"project": "bank"}])
def test_a_host_that_speaks_for_another_machine_is_refused(signed: Signed, change: dict[str, str]) -> None:
    forged = msgspec.structs.replace(signed.claims, **change)
    with pytest.raises(Denied, match="its certificate"):
        verify(signed.voucher.sign(forged), signed.authorities, "vault", NOW)


def test_a_token_that_was_changed_is_refused(signed: Signed) -> None:
    head, _, signature = signed.voucher.sign(signed.claims).split(".")
    other = base64.urlsafe_b64encode(to_json(msgspec.structs.replace(signed.claims, name="db"))).rstrip(b"=").decode()
    with pytest.raises(Denied, match="not as it was signed"):
        verify(f"{head}.{other}.{signature}", signed.authorities, "vault", NOW)


def test_another_clouds_machine_is_refused(signed: Signed, tmp_path: Path) -> None:
    with pytest.raises(Denied, match="none of the authorities") as refused:
        verify(signed.voucher.sign(signed.claims), Authority.ensure(tmp_path / "b", NOW).ca_pem, "vault", NOW)
    assert "identity/keys" in refused.value.fix


def test_a_hosts_own_certificate_vouches_for_nobody(signed: Signed) -> None:
    key = attestation.new_key()
    host = signed.authority.sign_host(attestation.request_for(key), Id("host-00000000000a"), NOW)  # type: ignore[arg-type]
    with pytest.raises(Denied, match="is no machine's"):
        verify(Voucher(host.pem, key).sign(signed.claims), signed.authorities, "vault", NOW)


@pytest.mark.parametrize("token", ["", "a.b", "a.b.c", "e30.e30.e30", "\u00e9.\u00e9.\u00e9"])
def test_what_is_no_token_is_refused(signed: Signed, token: str) -> None:
    with pytest.raises(Invalid, match="no identity token"):
        verify(token, signed.authorities, "vault", NOW)


def test_an_unsigned_token_is_refused(signed: Signed) -> None:
    _, claims, _ = signed.voucher.sign(signed.claims).split(".")
    head = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT","x5c":[]}').rstrip(b"=").decode()
    with pytest.raises(Invalid, match="signed by none"):
        verify(f"{head}.{claims}.", signed.authorities, "vault", NOW)


def test_a_voucher_opens_no_link(signed: Signed) -> None:
    """The certificate's only purpose is to sign documents."""
    usage = msgspec.json.decode(msgspec.json.encode(list(public_keys(signed.voucher.pem))))[0]
    assert usage["crv"] == "P-256"
    assert not signed.voucher.is_fresh(signed.authorities, NOW + MACHINE_DAYS * 86400 / 2 + 3600)
    assert signed.voucher.is_fresh(signed.authorities, NOW)


# --- what the guest is answered -----------------------------------------------------------------------------------


def test_the_document_and_its_signature_hold_together(signed: Signed) -> None:
    def leaf(name: str) -> str:
        asked = Asked(method="GET", path=f"/latest/dynamic/instance-identity/{name}")
        return answer(asked, guest(VM), TOKENS, NOW, signed.voucher).body

    assert leaf("") == "certificate\ndocument\nsignature"
    document = leaf("document").encode()
    found = verify_document(document, leaf("signature"), leaf("certificate"), signed.authorities, NOW)
    assert found == msgspec.json.decode(document)["instanceId"] == VM
    with pytest.raises(Denied, match="not as it was signed"):
        verify_document(document + b" ", leaf("signature"), leaf("certificate"), signed.authorities, NOW)


def test_a_token_needs_an_audience_a_bounded_time_and_a_voucher(signed: Signed) -> None:
    assert token_for(signed.voucher, VM, NOW).status == 400
    assert token_for(signed.voucher, VM, NOW, audience="x" * 256).status == 400
    for ttl in ("0", "3601", "-1", "1e3", "²"):
        assert token_for(signed.voucher, VM, NOW, audience="v", ttl=ttl).status == 400
    missing = token_for(None, VM, NOW, audience="v")
    assert (missing.status, missing.headers["Retry-After"]) == (503, "5")


def test_where_tokens_are_required_nothing_is_said_without_one() -> None:
    shy = guest(VM, token_required=True, token_hops=3)
    for path in ("/", "/latest/meta-data/", "/nocloud/user-data", "/latest/dynamic/instance-identity/token"):
        refused = answer(Asked(method="GET", path=path), shy, TOKENS, NOW)
        assert refused.status == 401, path
    put = answer(Asked(method="PUT", path="/latest/api/token", token_ttl="60"), shy, TOKENS, NOW)
    assert (put.status, put.hops) == (200, 3)
    asked = Asked(method="GET", path="/latest/meta-data/instance-id", token=put.body)
    assert answer(asked, shy, TOKENS, NOW).body == VM
    assert answer(asked, guest(VM, token_required=True), TOKENS, NOW + 61).status == 401
    proxied = Asked(method="PUT", path="/latest/api/token", token_ttl="60", forwarded=True)
    assert answer(proxied, shy, TOKENS, NOW).status == 403


@pytest.mark.parametrize(
    ("project", "machine", "required"),
    [
        ("optional", "project", False), ("required", "project", True), ("optional", "required", True),
        ("required", "optional", False),
    ],
)  # fmt: skip
async def test_a_machine_says_or_else_its_project(world: World, project: str, machine: str, required: bool) -> None:
    await world.desk.create("project", "", PROJECT, metadata_tokens=project)
    row = a_vm(1, spec={"metadata_tokens": machine})
    assert isinstance(row.spec, VmSpec)
    assert _needs_token(row, world.store.seen) is required


# --- the published keys, and the command --------------------------------------------------------------------------


async def test_the_keys_are_published_to_everybody(signed: Signed, tmp_path: Path) -> None:
    async with api_world(tmp_path, authorities_pem=lambda: signed.authorities) as cloud:
        reply = await cloud.call("GET", "/v1/identity/keys", as_=None)
    assert reply.status == 200
    assert authorities_of(reply.raw) == signed.authorities
    assert {one["alg"] if "alg" in one else one["kty"] for one in reply.json["keys"]} == {"EC"}


def test_the_command_believes_and_does_not(tmp_path: Path) -> None:
    now = time.time()
    authority = Authority.ensure(tmp_path / "pki", now)
    key = attestation.new_key()
    voucher = Voucher(authority.sign_machine(attestation.request_for(key), Machine(id=VM, project=PROJECT), now), key)
    token = token_for(voucher, VM, now, audience="vault").body
    keys = tmp_path / "keys.json"
    keys.write_bytes(msgspec.json.encode({"keys": list(public_keys(authority.ca_pem))}))
    run = CliRunner().invoke
    good = run(root(), ["identity", "verify", "--audience", "vault", "--keys", str(keys), token])
    assert good.exit_code == 0, good.output
    assert VM in good.output
    piped = run(root(), ["identity", "verify", "--audience", "vault", "--keys", str(keys), "-"], input=token)
    assert piped.exit_code == 0
    bad = run(root(), ["identity", "verify", "--audience", "bank", "--keys", str(keys), token])
    assert bad.exit_code != 0

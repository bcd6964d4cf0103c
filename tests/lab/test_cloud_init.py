"""A real Debian with cloud-init takes name, keys and user data from the metadata service, or from a NoCloud disk."""

from collections.abc import Iterator

import pytest

from lab.cloud import KEYPAIR, PROJECT, Lab
from tests.lab.calls import Cloud, until
from tests.lab.debian import debian_disk

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1800)]

IMAGE, SIZE = "debian", "debian"
BOOT_S = 600.0
"""A whole Debian on an emulated CPU."""

USER_DATA = """#cloud-config
runcmd:
  - [sh, -c, 'echo "proof: $(cloud-id) $(cloud-init query instance_id) $(hostname) end" >/dev/ttyS0']
  - [sh, -c, 'echo "proof-key: $(cat /home/debian/.ssh/authorized_keys) end" >/dev/ttyS0']
"""


@pytest.fixture(scope="module")
def cloud(lab: Lab) -> Iterator[Cloud]:
    """Give a cloud with the Debian image."""
    cloud, disk = Cloud(lab), debian_disk()
    cloud.make("/v1/sizes", SIZE, {"vcpus": 2, "memory_mib": 1024, "disk_gib": 3})
    cloud.make(f"/v1/projects/{PROJECT}/images", IMAGE, {"format": "qcow2"})
    lab.api.upload(f"/v1/projects/{PROJECT}/images/{IMAGE}/content", disk)
    yield cloud
    cloud.tidy()
    cloud.delete(f"/v1/projects/{PROJECT}/images/{IMAGE}")


def test_cloud_init_takes_name_keys_and_user_data_from_the_metadata_service(cloud: Cloud) -> None:
    cloud.create("bookworm", image=IMAGE, size=SIZE, user_data=USER_DATA)
    log = cloud.until_logged("bookworm", _is_proved, "the user data's proof", timeout_s=BOOT_S)
    assert f"proof: aws {cloud.id('bookworm')} bookworm end" in log or f"proof: ec2 {cloud.id('bookworm')}" in log
    assert f"proof-key: {_key(cloud)} end" in log
    cloud.delete_vms("bookworm")


def test_cloud_init_takes_them_from_the_nocloud_disk_where_no_metadata_service_answers(cloud: Cloud) -> None:
    host = cloud.lab.host("h1")
    cloud.create("diskette", image=IMAGE, size=SIZE, user_data=USER_DATA, nocloud=True)
    cloud.until_state("diskette", "running", timeout_s=120)
    vm = cloud.id("diskette")
    host.hold_agent()  # it is the one who serves metadata
    try:
        log = until(
            lambda: text if _is_proved(text := _log(cloud, vm)) else None, lambda: _log(cloud, vm)[-3000:], BOOT_S, 1
        )
    finally:
        host.release_agent()
    assert f"proof: nocloud {vm} diskette end" in log
    assert f"proof-key: {_key(cloud)} end" in log
    cloud.lab.wait_for_hosts()
    cloud.delete_vms("diskette")


def _is_proved(log: str) -> bool:
    return "proof-key: " in log and " end" in log.rpartition("proof-key: ")[2]


def _log(cloud: Cloud, vm: str) -> str:
    """Read a serial log on the host itself."""
    file = cloud.lab.host("h1").inside(f"/srv/skerry-agent/consoles/{vm}.log")
    return file.read_text(errors="replace").replace("\r", "")


def _key(cloud: Cloud) -> str:
    found = cloud.find(f"/v1/projects/{PROJECT}/keypairs/{KEYPAIR}")
    assert found is not None
    return str(found["spec"]["public_key"])

"""What a NoCloud disk says."""

import yaml

from agent.drivers.nocloud import contents
from common.documents import GuestMetadata
from common.ids import Id

KEY = 'ssh-ed25519 AAAA "me": #1'
METADATA = GuestMetadata(
    instance_id=Id("vm-0123456789ab"),
    hostname="web",
    project="demo",
    public_keys=(("me", KEY),),
    user_data="#cloud-config\n",
    host="h1",
)


def test_its_meta_data_is_yaml() -> None:
    found = yaml.safe_load(contents(METADATA)["meta-data"])
    assert found == {"instance-id": "vm-0123456789ab", "local-hostname": "web", "public-keys": [KEY]}


def test_each_key_has_a_line_of_its_own_for_guests_that_read_it_with_sed() -> None:
    lines = contents(METADATA)["meta-data"].decode().splitlines()
    assert lines[0] == 'instance-id: "vm-0123456789ab"'
    assert [line.partition(":")[0] for line in lines] == ["instance-id", "local-hostname", "public-keys"]

"""keypair: a public SSH key that machines accept."""

from typing import Annotated

import msgspec

from common.counters import KEYPAIRS
from common.kinds.kind import Column, Kind, Scope, Spec, Status


class KeypairSpec(Spec, frozen=True):
    """The public half. The private half never comes here."""

    public_key: Annotated[
        str,
        msgspec.Meta(
            pattern=r"^(?:ssh-(?:ed25519|rsa)|ecdsa-sha2-nistp(?:256|384|521)|sk-[a-z0-9@.-]+)"
            r" [A-Za-z0-9+/=]+(?: [^\n]*)?$(?!\n)",
            max_length=16384,
            description="one line as in id_ed25519.pub",
            examples=["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIG9w me@desk"],
        ),
    ]


KEYPAIR = Kind(
    name="keypair",
    plural="keypairs",
    prefix="key",
    scope=Scope.PROJECT,
    spec=KeypairSpec,
    status=Status,
    summary="A public SSH key, given to machines by the metadata service.",
    example='skerry keypair create me --public-key "$(cat ~/.ssh/id_ed25519.pub)"',
    counters=(KEYPAIRS,),
    columns=(Column(title="NAME", path="name"), Column(title="PUBLIC KEY", path="spec.public_key")),
    change=None,
    fixed=frozenset({"public_key"}),
)

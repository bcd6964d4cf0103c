"""`--dry-run`: what would come of a change, in words, with nothing changed."""

import json
from collections.abc import Iterator
from typing import Any

import click
import pytest
from api_world import P, World
from click.testing import CliRunner

from common.kinds import KINDS
from controller.cli.main import root
from controller.cli.rehearsal import print_rehearsal


class _Client:
    def decode(self, raw: bytes, of: Any) -> Any:
        import msgspec  # noqa: PLC0415

        return msgspec.json.decode(raw, type=of)


def printed(raw: bytes, form: str = "table") -> tuple[int, str]:
    """Return what the command prints for an answer, and its exit code."""

    @click.command()
    @click.pass_context
    def command(ctx: click.Context) -> None:
        ctx.meta["skerry.form"] = form
        print_rehearsal(_Client(), raw)  # type: ignore[arg-type]

    result = CliRunner().invoke(command)
    return result.exit_code, result.output


async def test_a_machine_that_fits_is_shown_with_its_host_and_address(cloud: World) -> None:
    await cloud.host("h1")
    await cloud.needs("a")
    body = {"name": "web", "spec": {"image": "disk", "size": "small"}}
    raw = (await cloud.call("POST", f"{P}/a/vms?dry_run=true", body)).raw
    code, text = printed(raw)

    assert code == 0
    assert text.splitlines()[0] == "dry run: vm web, nothing is kept"
    assert "  ok  references  there is image disk, size small, network default" in text
    assert "  takes address 10.20.0.2 of network default" in text
    assert text.splitlines()[-1] == "  then: placed on host h1, as things are now"
    assert json.loads(printed(raw, "json")[1]) == json.loads(raw)


async def test_one_that_does_not_fit_says_why_and_ends_with_4(cloud: World) -> None:
    await cloud.host("h1", memory_mib=600)
    await cloud.needs("a")
    body = {"name": "web", "spec": {"image": "disk", "size": "small"}}
    code, text = printed((await cloud.call("POST", f"{P}/a/vms?dry_run=true", body)).raw)

    assert code == 4
    assert "then: blocked: none of 1 host fits" in text
    assert "memory" in text
    assert "smallest change that would fit" in text


async def test_a_change_is_shown_field_by_field_with_names(cloud: World) -> None:
    await cloud.make("/v1/projects", "shop", {"description": "old"})
    body = {"spec": {"description": "new"}}
    raw = (await cloud.call("PATCH", "/v1/projects/shop?dry_run=true", body, headers={"If-Match": "*"})).raw

    assert "  would change spec.description: old → new\n" in printed(raw)[1]


def mutating() -> Iterator[tuple[str, click.Command]]:
    """Give every command that changes something."""
    command = root()
    ctx = click.Context(command, info_name="skerry")
    for kind in KINDS:
        group = command.get_command(ctx, kind.name)
        assert isinstance(group, click.Group)
        words = {"create", "set", "delete", *(verb.name for verb in kind.verbs)}
        extras = (extra.name for extra in kind.extras if extra.method != "GET" and extra.name != "password")
        words |= {"upload" if name == "content" else name for name in extras}
        yield from ((f"{kind.name} {word}", group.commands[word]) for word in words & set(group.commands))
    operation = command.get_command(ctx, "operation")
    assert isinstance(operation, click.Group)
    yield "operation cancel", operation.commands["cancel"]


@pytest.mark.parametrize(("words", "command"), list(mutating()), ids=lambda one: one if isinstance(one, str) else "")
def test_every_command_that_changes_something_can_be_rehearsed(words: str, command: click.Command) -> None:
    assert "dry_run" in {parameter.name for parameter in command.params}, words

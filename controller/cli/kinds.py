"""The commands that every kind has: list, show, create, set, delete and its verbs, all made from the descriptor."""

from typing import TYPE_CHECKING, Any

import click

from common.kinds.kind import AnyKind, Field, Scope, Verb
from controller.cli import flags
from controller.cli.extras import commands_of
from controller.cli.parts import (
    Ordered,
    a,
    common_options,
    dry_run_option,
    examples,
    name_argument,
    sample,
    wait_options,
)
from controller.cli.session import form, talk

if TYPE_CHECKING:
    from controller.cli.answers import Accepted, Many, One
    from controller.cli.client import Client
    from controller.cli.watch import Choice

CHANGE_TRIES = 5
"""How often `set` reads again when somebody else changed the thing meanwhile."""


def commands(kind: AnyKind) -> dict[str, click.Command]:
    """Return the commands of a kind by their word, in the order in which help shows them."""
    found = [list_command(kind), show_command(kind)]
    if kind.create is not None:
        found.append(create_command(kind))
    if kind.change is not None:
        found.append(set_command(kind))
    if kind.delete is not None:
        found.append(delete_command(kind))
    found += [verb_command(kind, verb) for verb in kind.verbs]
    found += commands_of(kind)
    return {command.name or "": command for command in found}


def group(kind: AnyKind) -> click.Group:
    """Return the command group of a kind."""
    return Ordered(
        kind.name, commands=commands(kind), help=f"{kind.summary}\n\n{examples(kind.example)}", short_help=kind.summary
    )


# --- reading ------------------------------------------------------------------------------------------------------


def list_command(kind: AnyKind) -> click.Command:
    """Return `skerry KIND list`."""

    def run(label: tuple[tuple[str, str | None], ...], state: str, prefix: str, limit: int | None, watch: bool) -> None:
        from controller.cli.render import print_resources  # noqa: PLC0415

        if watch and limit:
            raise click.UsageError("--watch shows what changes anywhere in the list: leave --limit out")
        labels = tuple(("label", f"{key}={value}") for key, value in label)
        query = (
            *labels,
            *((("state", state),) if state else ()),
            *((("name", prefix),) if prefix else ()),
        )

        async def work(client: "Client") -> "list[Many]":
            return [page async for page in client.pages(client.path(kind), query, limit=limit)]

        pages = talk(work)
        names = {id_: name for page in pages for id_, name in page.names.items()}
        print_resources(kind, [raw for page in pages for raw in page.items], names)
        if watch:
            from controller.cli.watch import Choice  # noqa: PLC0415

            choice = Choice(state=state, prefix=prefix)
            talk(lambda client: _follow(client, kind, labels, choice, pages[0].revision))

    return click.Command(
        "list",
        callback=run,
        short_help=f"List {kind.plural}.",
        help=f"List {kind.plural}.\n\n"
        + examples(
            f"skerry {kind.name} list", f"skerry {kind.name} list -o json", f"skerry {kind.name} list -l tier=web"
        ),
        params=[
            click.Option(
                ["-l", "--label"],
                type=flags.KeyValue(removable=False),
                multiple=True,
                help="Only those with this label (repeatable)",
            ),
            click.Option(["--state"], default="", help="Only those in this state"),
            click.Option(["--name", "prefix"], default="", metavar="PREFIX", help="Only names that begin so"),
            click.Option(["--limit"], type=click.IntRange(min=1), metavar="N", help="At most so many (default: all)"),
            click.Option(["-w", "--watch"], is_flag=True, help="Go on with what changes, until Ctrl-C"),
            *common_options(kind),
        ],
    )


async def _follow(
    client: "Client", kind: AnyKind, labels: tuple[tuple[str, str], ...], choice: "Choice", revision: int
) -> None:
    """Go on with what changes in a list behind the revision at which it was read."""
    from controller.cli.watch import follow  # noqa: PLC0415

    project = (("project", client.connection.project),) if kind.scope is Scope.PROJECT else ()
    await follow(client, (("kind", kind.name), *project, *labels), revision, choice)


def show_command(kind: AnyKind) -> click.Command:
    """Return `skerry KIND show NAME`."""

    def run(name: str) -> None:
        from controller.cli.render import print_resource  # noqa: PLC0415

        async def work(client: "Client") -> None:
            from controller.cli.metrics import print_last_hour  # noqa: PLC0415

            one, _ = await client.one(kind, name)
            print_resource(one.resource, one.names)
            if form() == "table" and any(extra.name == "metrics" for extra in kind.extras):
                await print_last_hour(client, kind, name)

        talk(work)

    return click.Command(
        "show",
        callback=run,
        short_help=f"Show one {kind.name} in full.",
        help=f"Show one {kind.name} in full, by name or id.\n\n"
        + examples(f"skerry {kind.name} show {sample(kind)}", f"skerry {kind.name} show {sample(kind)} -o yaml"),
        params=[name_argument(kind), *common_options(kind)],
    )


# --- changing -----------------------------------------------------------------------------------------------------


def create_command(kind: AnyKind) -> click.Command:
    """Return `skerry KIND create NAME`, with a flag for each field of the spec."""

    def run(
        name: str,
        label: tuple[tuple[str, str | None], ...],
        wait: bool,
        timeout: float,
        dry_run: bool,
        **given: Any,
    ) -> None:
        body = {
            "name": name,
            "labels": flags.labels_of(label, {}),
            "spec": flags.spec_of(flags.offered(kind, change=False), given),
        }

        async def work(client: "Client") -> None:
            from controller.cli.aftermath import reveal, settled  # noqa: PLC0415
            from controller.cli.rehearsal import rehearse  # noqa: PLC0415

            if dry_run:
                await rehearse(client, "POST", client.path(kind), body=body)
                return
            accepted = await client.change("POST", client.path(kind), body=body)
            if accepted.revealed:
                await reveal(client, kind, name, accepted.revealed)
            await settled(client, kind, accepted, wait=wait, timeout_s=timeout)

        talk(work)

    return click.Command(
        "create",
        callback=run,
        short_help=f"Make {a(kind)}.",
        help=f"Make {a(kind)}."
        + (
            f" Its {'text' if kind.reveals == kind.name else kind.reveals} is printed once and never again."
            if kind.reveals
            else ""
        )
        + f"\n\n{examples(kind.example)}",
        params=[
            name_argument(kind),
            *(flags.option(field, change=False) for field in flags.offered(kind, change=False)),
            _label_option(removable=False),
            *wait_options(),
            dry_run_option(),
            *common_options(kind),
        ],
    )


def set_command(kind: AnyKind) -> click.Command:
    """Return `skerry KIND set NAME`, with a flag for each field that can change."""

    def run(
        name: str,
        label: tuple[tuple[str, str | None], ...],
        wait: bool,
        timeout: float,
        dry_run: bool,
        **given: Any,
    ) -> None:
        spec = flags.spec_of(flags.offered(kind, change=True), given)
        if not spec and not label:
            raise click.UsageError("nothing to set: give at least one flag")

        async def work(client: "Client") -> None:
            from controller.cli.aftermath import settled  # noqa: PLC0415
            from controller.cli.rehearsal import rehearse  # noqa: PLC0415

            if dry_run:
                one, etag = await client.one(kind, name)
                body = _change_of(one, spec, label)
                await rehearse(client, "PATCH", client.path(kind, name), body=body, etag=etag)
                return
            accepted = await change_spec(client, kind, name, spec, label)
            await settled(client, kind, accepted, wait=wait, timeout_s=timeout)

        talk(work)

    fields = flags.offered(kind, change=True)
    word = f"skerry {kind.name} set {sample(kind)}"
    flag = [f"{word} {flags.usage(field)}" for field in fields[:1]]
    fixed = f"\n\nWhat can't change once it is made: {', '.join(sorted(kind.fixed))}." if kind.fixed else ""
    return click.Command(
        "set",
        callback=run,
        short_help=f"Change {a(kind)}.",
        help=f"Change {a(kind)}: only what is given changes.{fixed}\n\n"
        + examples(*flag, f"{word} --label tier=web --label old-"),
        params=[
            name_argument(kind),
            *(flags.option(field, change=True) for field in fields),
            _label_option(removable=True),
            *wait_options(),
            dry_run_option(),
            *common_options(kind),
        ],
    )


async def change_spec(
    client: "Client", kind: AnyKind, name: str, spec: dict[str, Any], label: tuple[tuple[str, str | None], ...] = ()
) -> "Accepted":
    """Change only these fields and labels of a thing, whoever else changes others meanwhile."""
    from controller.cli.failures import Refused  # noqa: PLC0415

    for left in reversed(range(CHANGE_TRIES)):
        one, etag = await client.one(kind, name)
        body = _change_of(one, spec, label)
        try:
            return await client.change("PATCH", client.path(kind, name), body=body, etag=etag)
        except Refused as err:
            if err.problem.status != 412 or not left:
                raise
    raise AssertionError("the last try returns or raises")


def _change_of(one: "One", spec: dict[str, Any], label: tuple[tuple[str, str | None], ...]) -> dict[str, Any]:
    """Return the body of a change of a thing as it was read."""
    from controller.cli.answers import shown  # noqa: PLC0415

    labels = {"labels": flags.labels_of(label, shown(one.resource).labels)} if label else {}
    return {"spec": spec, **labels}


def delete_command(kind: AnyKind) -> click.Command:
    """Return `skerry KIND delete NAME...`."""
    kept = (
        f" A deleted {kind.name} is kept for as long as its project says (keep_deleted_s), to be restored."
        if kind.keeps
        else ""
    )
    now = click.Option(["--now"], is_flag=True, help="Free it at once: it can't be restored.")
    return _wish_command(
        kind,
        word="delete",
        help=f"Delete {kind.plural}. It is accepted in every state, and not asked about twice.{kept}",
        short=f"Delete {kind.plural}.",
        method="DELETE",
        tail="",
        options=(now,) if kind.keeps else (),
    )


def verb_command(kind: AnyKind, verb: Verb) -> click.Command:
    """Return `skerry KIND VERB NAME...`."""
    return _wish_command(
        kind,
        word=verb.name,
        help=verb.summary,
        short=verb.summary.split(". ")[0].split(":")[0].removesuffix(".") + ".",
        method="POST",
        tail=verb.name,
        takes=flags.taken(verb),
        example=verb.example,
    )


def _wish_command(
    kind: AnyKind,
    *,
    word: str,
    help: str,  # noqa: A002
    short: str,
    method: str,
    tail: str,
    takes: tuple[Field, ...] = (),
    example: str = "",
    options: tuple[click.Option, ...] = (),
) -> click.Command:
    def run(names: tuple[str, ...], wait: bool, timeout: float, dry_run: bool, **given: Any) -> None:
        query = {name: "true" for option in options if (name := option.name) and given.pop(name)}
        body = flags.spec_of(takes, given) or None

        async def work(client: "Client") -> None:
            from controller.cli.aftermath import settled  # noqa: PLC0415
            from controller.cli.rehearsal import rehearse  # noqa: PLC0415

            if dry_run:
                for name in names:
                    await rehearse(client, method, client.path(kind, name, tail), query=query, body=body)
                return
            paths = [client.path(kind, name, tail) for name in names]
            sent = [await client.change(method, path, query=query, body=body) for path in paths]
            for accepted in sent:
                await settled(client, kind, accepted, wait=wait, timeout_s=timeout)

        talk(work)

    name = sample(kind)
    return click.Command(
        word,
        callback=run,
        short_help=short,
        help=f"{help}\n\n"
        + examples(
            f"skerry {kind.name} {word} {name}{' ' if example else ''}{example} --wait",
            f"skerry {kind.name} {word} {name} …",
        ),
        params=[
            name_argument(kind, many=True),
            *(flags.option(field, change=False) for field in takes),
            *options,
            *wait_options(),
            dry_run_option(),
            *common_options(kind),
        ],
    )


def _label_option(*, removable: bool) -> click.Option:
    return click.Option(
        ["-l", "--label"],
        type=flags.KeyValue(removable=removable),
        multiple=True,
        help="A label key=value (repeatable" + ("; key- takes it away)" if removable else ")"),
    )

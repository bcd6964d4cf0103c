"""The reference pages of commands and kinds, made from what the command itself is made of: pure."""

from collections.abc import Iterable, Iterator

import click
import msgspec

from common.kinds import KINDS
from common.kinds.kind import AnyKind, Column, Field, Role, Scope, Verb, fields
from controller.cli import flags
from controller.cli.failures import EXIT_CODES
from controller.cli.main import EVERYDAY, SETUP, root
from controller.cli.parts import a, connection_options, form_option, wait_options
from controller.cli.settings import ENVIRONMENT

_MADE = "<!-- made from the code: change it there, then `make docs` -->"

_CLI_WORDS = """`skerry` speaks to the API and does nothing that the API can't. Its commands and flags are made from the
[kinds](kinds.md); `skerry COMMAND --help` shows what stands here. Names and flags are completed in the shell, names by
asking the API: `eval "$(skerry completion bash)"`.

Every change is accepted at once, and made true then. `--wait` waits for that, with a line on standard error that says
how it goes; without it, `skerry operation wait ID` does. Nothing asks before it acts.

Tables are for people: they show names for ids, and ages for moments. For scripts, `-o json` and `-o yaml` print the
resource as the API gives it (a list of them from `list`), and `-o name` the name. What creating a thing reveals once
only is in its JSON as `revealed`. Results go to standard output, everything else to standard error."""

_KIND_WORDS = """A kind is a type of thing. All kinds have the same commands ([cli](cli.md)) and the same addresses
([api](api.md)): list, show, create, change, delete, and the verbs of the kind. `spec` is what is wanted; `status` is
what was last seen, for people. Where a field refers to another thing, its name or id is given, and its id is kept."""


def cli_page() -> str:
    """Return the reference page of the command."""
    command = root()
    ctx = click.Context(command, info_name="skerry")
    parts = [
        "# The `skerry` command",
        _MADE,
        _CLI_WORDS,
        "## Exit codes",
        _table(("code", "when"), ((f"`{code}`", text) for code, text in EXIT_CODES)),
        "## Environment",
        _table(("variable", "what it is"), ((f"`{name}`", text) for name, text in ENVIRONMENT)),
        "## Options of most commands",
        _options([*connection_options(), form_option(), *wait_options()], ctx),
    ]
    for title, words in (
        ("Every day", list(EVERYDAY)),
        ("Things", [kind.name for kind in KINDS]),
        ("Setting up", list(SETUP)),
    ):
        parts.append(f"## {title}")
        for word in words:
            found = command.get_command(ctx, word)
            assert found, f"skerry has {word}"
            parts += _command(found, click.Context(found, info_name=word, parent=ctx))
    return "\n\n".join(parts) + "\n"


def _command(command: click.Command, ctx: click.Context) -> Iterator[str]:
    """Give a command's part of the page, and those of the commands below it."""
    yield f"### `{ctx.command_path}{_arguments(command)}`"
    yield from _help(command)
    own = [param for param in command.params if param.name not in _COMMON]
    if own and any(isinstance(param, click.Option) for param in own):
        yield _options(own, ctx)
    if isinstance(command, click.Group):
        for word in command.list_commands(ctx):
            below = command.get_command(ctx, word)
            assert below, f"{ctx.command_path} has {word}"
            yield from _command(below, click.Context(below, info_name=word, parent=ctx))


_COMMON = frozenset({"project", "context", "form", "wait", "timeout"})


def _arguments(command: click.Command) -> str:
    found = [param for param in command.params if isinstance(param, click.Argument)]
    words = [(param.metavar or (param.name or "").upper()) + ("…" if param.nargs == -1 else "") for param in found]
    return "".join(f" {word}" for word in words)


def _help(command: click.Command) -> Iterator[str]:
    """Give a help text's paragraphs; what click prints as it stands (`\\b`) is code."""
    for paragraph in (command.help or "").split("\n\n"):
        if paragraph.startswith("\b\n"):
            lines = [line.removeprefix("  ") for line in paragraph.splitlines()[1:]]
            yield "\n".join(["```sh", *lines, "```"])
        elif paragraph != "Examples:":
            yield " ".join(paragraph.split())


def _options(params: Iterable[click.Parameter], ctx: click.Context) -> str:
    rows = []
    for param in params:
        record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
        if record:
            rows.append((f"`{record[0]}`", " ".join(record[1].split())))
    return _table(("flag", "what it does"), rows)


# --- kinds --------------------------------------------------------------------------------------------------------


def kinds_page() -> str:
    """Return the reference page of the kinds."""
    parts = ["# Kinds", _MADE, _KIND_WORDS]
    for kind in KINDS:
        parts += _kind(kind)
    return "\n\n".join(parts) + "\n"


def _kind(kind: AnyKind) -> Iterator[str]:
    yield f"## {kind.name}"
    where = "of a project" if kind.scope is Scope.PROJECT else "of the cloud as a whole"
    shared = "; public ones are seen from every project" if kind.shared else ""
    yield f"{kind.summary} It is {where}{shared}. Its ids begin with `{kind.prefix}-`."
    yield f"```sh\n{kind.example}\n```"
    if kind.reveals:
        yield f"Creating {a(kind)} reveals its {kind.reveals}, once and never again."
    yield _table(
        ("spec", "type", "default", "what it is"),
        ((f"`{field.name}`", _type(field), _default(field), _meaning(kind, field)) for field in fields(kind.spec)),
    )
    yield _table(("who", "may"), _permissions(kind))
    if kind.verbs:
        yield _table(
            ("verb", "takes", "what it does"), ((f"`{verb.name}`", _takes(verb), verb.summary) for verb in kind.verbs)
        )
    if kind.extras:
        yield _table(("besides", "what it does"), ((f"`{extra.name}`", extra.summary) for extra in kind.extras))
    yield "Lists show " + ", ".join(_column(column) for column in kind.columns) + "."


def _takes(verb: Verb) -> str:
    return "; ".join(
        f"`{field.name}`{'' if field.required else ' (optional)'}: {field.description}" for field in flags.taken(verb)
    )


def _type(field: Field) -> str:
    return _type_words(msgspec.inspect.type_info(field.type), field.ref)


def _type_words(info: msgspec.inspect.Type, ref: str | None) -> str:
    match info:
        case msgspec.inspect.Metadata():
            return _type_words(info.type, ref)
        case msgspec.inspect.LiteralType():
            return ", ".join(f"`{value}`" for value in info.values)
        case msgspec.inspect.VarTupleType():
            return f"list of {_type_words(info.item_type, ref)}"
        case msgspec.inspect.UnionType():
            return " or ".join(_type_words(one, ref) for one in info.types)
        case msgspec.inspect.NoneType():
            return "none"
        case msgspec.inspect.BoolType():
            return "yes or no"
        case msgspec.inspect.IntType():
            return "whole number" + _range(info.ge, info.le)
        case msgspec.inspect.FloatType():
            return "number" + _range(info.ge, info.le)
        case msgspec.inspect.StrType():
            longest = f" of up to {info.max_length}" if info.max_length else ""
            return f"name or id of {_article(ref)}" if ref else f"text{longest}"
        case _:
            return "JSON"


def _article(ref: str) -> str:
    return f"{'an' if ref[0] in 'aeiou' else 'a'} {ref}"


def _range(least: float | None, most: float | None) -> str:
    if least is None and most is None:
        return ""
    return f", {least if least is not None else '…'} to {most if most is not None else '…'}"


def _default(field: Field) -> str:
    return "required" if field.required else f"`{flags.default_text(field)}`"


def _meaning(kind: AnyKind, field: Field) -> str:
    notes = [field.description]
    if field.server_set:
        notes.append("set by Skerry")
    elif field.name in kind.fixed:
        notes.append("can't change once it is made")
    return "; ".join(notes)


def _permissions(kind: AnyKind) -> Iterator[tuple[str, str]]:
    doing: dict[Role | None, list[str]] = {}
    for role, what in (
        (kind.read, "list, show"),
        (kind.create, "create"),
        (kind.change, "set"),
        (kind.delete, "delete"),
        *((verb.role, verb.name) for verb in kind.verbs),
        *((extra.role, extra.name) for extra in kind.extras),
    ):
        doing.setdefault(role, []).append(what)
    for role in sorted(doing, key=lambda role: role or 0):
        yield (_who(kind, role), ", ".join(doing[role]))


_OF_A_DOMAIN = ("project", "user", "role")


def _who(kind: AnyKind, role: Role | None) -> str:
    if role is None:
        return "nobody"
    if kind.name in _OF_A_DOMAIN:
        return f"{role.name.lower()} of the domain"
    if kind.scope is Scope.CLOUD:
        return "every reader" if role is Role.READER else "the cloud's operators"
    return f"{role.name.lower()} of the project"


def _column(column: Column) -> str:
    return f"`{column.title}` ({column.path})"


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [_row(heads), _row(tuple("---" for _ in heads)), *(_row(row) for row in rows)]
    return "\n".join(lines)


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

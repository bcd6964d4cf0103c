"""`skerry cpus`: the CPU that hosts share, which is what machines get, and which hosts have less than the others."""

import click

from controller.cli.answers import Answer
from controller.cli.client import Client
from controller.cli.parts import connection_options, examples, form_option
from controller.cli.render import print_data, print_table
from controller.cli.session import form, talk

TITLES = ("MAKE", "CPU", "HOSTS", "LEVEL", "FLAGS")


class CpuShown(Answer, frozen=True):
    """What machines get that ask for this."""

    wish: str
    level: str
    hosts: int
    flags: tuple[str, ...] = ()


class CostShown(Answer, frozen=True):
    """Hosts without which the others would share more."""

    hosts: int
    named: tuple[str, ...]
    level: str
    flags: tuple[str, ...]


class MakeShown(Answer, frozen=True):
    """Hosts between which machines could move."""

    make: str
    cpus: tuple[CpuShown, ...]
    costs: tuple[CostShown, ...] = ()


class CpusAnswer(Answer, frozen=True):
    """Of all makes."""

    items: tuple[MakeShown, ...]
    silent: tuple[str, ...] = ()


def command() -> click.Command:
    """Return `skerry cpus`."""

    def run() -> None:
        async def work(client: Client) -> tuple[bytes, CpusAnswer]:
            raw = await client.raw("GET", "/v1/cpus")
            return raw, client.decode(raw, CpusAnswer)

        raw, found = talk(work)
        if form() in ("json", "yaml"):
            print_data(raw)
            return
        if form() == "name":
            click.echo("\n".join(one.make for one in found.items))
            return
        rows = [
            [one.make, cpu.wish, str(cpu.hosts), cpu.level, str(len(cpu.flags))]
            for one in found.items
            for cpu in one.cpus
        ]
        print_table(list(TITLES), rows, empty="no host has said yet what its CPU can do")
        for one in found.items:
            for cost in one.costs:
                click.echo(_words(one.make, cost))
        if found.silent:
            click.echo(f"not known, so guests there have all that their host has: {', '.join(found.silent)}")

    return click.Command(
        "cpus",
        callback=run,
        short_help="The CPU that hosts share, and which hosts have less.",
        help="Show the CPU that machines get when they are started next: what all hosts of a make (virtualisation and "
        "vendor) can give, and for those that ask for a level (vm create --cpu) what the hosts of that level can. "
        "Below it, the hosts without which the others would share more. What runs already keeps its CPU until it is "
        "stopped and started.\n\n" + examples("skerry cpus", "skerry cpus -o json"),
        params=[*connection_options(), form_option()],
    )


def _words(make: str, cost: CostShown) -> str:
    more = cost.hosts - len(cost.named)
    who = ", ".join(cost.named) + (f" and {more} more" if more else "")
    flags = f"{len(cost.flags)} flag{'s' if len(cost.flags) != 1 else ''}"
    return f"without {who} the others ({make}) would share {flags} more, {cost.level}: {', '.join(cost.flags)}"

"""What the things of each project count together, kept as they come and go: plain data for the working set."""

from controller.store.rows import Counts

Sums = dict[str, dict[str, int]]
"""For each project and counter; what is nothing is not kept."""


def change(sums: Sums, project: str, before: Counts, after: Counts) -> None:
    """Take what a thing counts now in place of what it counted."""
    if before == after:
        return
    own = sums.setdefault(project, {})
    for sign, counts in ((-1, before), (1, after)):
        for name, amount in counts.items():
            own[name] = own.get(name, 0) + sign * amount
            if not own[name]:
                del own[name]
    if not own:
        del sums[project]

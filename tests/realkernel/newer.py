"""Newer releases, made from the packages that there are: good ones, and one that does not become ready."""

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from lab.commands import run

SCHEMA = "9999"
_MIGRATION = '''"""A table more."""

import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = "{before}"


def upgrade() -> None:
    """Make it."""
    op.create_table("newer", sa.Column("id", sa.Integer(), primary_key=True))
'''
_READY = 'notify("READY=1", os.environ)'


def released(packages: Sequence[Path], into: Path, revision: int, change: Callable[[Path], None]) -> list[Path]:
    """Make packages with a higher revision into a folder; `change` gets the directory of the Python packages."""
    into.mkdir(parents=True)
    return [_again(package, into, revision, change) for package in packages]


def with_another_schema(code: Path) -> None:
    """Have the release bring a migration."""
    versions = code / "controller" / "store" / "migrations" / "versions"
    before = max(file.name.partition("_")[0] for file in versions.glob("[0-9]*.py"))
    (versions / f"{SCHEMA}_newer.py").write_text(_MIGRATION.format(revision=SCHEMA, before=before))


def that_never_gets_ready(code: Path) -> None:
    """Have the release migrate the database, turn its loop, listen, and fail at the moment before it is ready."""
    with_another_schema(code)
    main = code / "controller" / "main.py"
    text = main.read_text()
    assert text.count(_READY) == 1
    main.write_text(text.replace(_READY, 'raise RuntimeError("planted: not ready")'))
    for compiled in (code / "controller" / "__pycache__").glob("main.*.pyc"):
        compiled.unlink()  # it is taken for the source without a look


def _again(package: Path, into: Path, revision: int, change: Callable[[Path], None]) -> Path:
    tree = into / "tree"
    run(["dpkg-deb", "--raw-extract", str(package), str(tree)], timeout_s=120)
    control = tree / "DEBIAN" / "control"
    control.write_text(
        re.sub(r"^(Version: .*-|.*skerry-common \(= .*-)\d+", rf"\g<1>{revision}", control.read_text(), flags=re.M)
    )
    for code in tree.glob("opt/skerry/lib/python3.*/site-packages"):
        change(code)
    made = into / re.sub(r"-\d+_", f"-{revision}_", package.name)
    run(["dpkg-deb", "--root-owner-group", "-Zzstd", "-z1", "--build", str(tree), str(made)], timeout_s=300)
    shutil.rmtree(tree)
    return made

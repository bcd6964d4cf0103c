"""docs/install.md is read as what is typed, and on which machine."""

from pathlib import Path

from lab.manual import blocks

PAGE = """# Page
```sh
whole page
```
## One
Words.
```sh ctl
first --flag   # a comment
# nothing but a comment

second "$(cat x)"
```
```
not typed
```
## Two
```sh h1 h2
third
```
"""


def test_blocks_have_their_heading_their_machines_and_lines_without_comments(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    found = [(one.heading, one.machines, one.lines) for one in blocks(page)]
    assert found == [
        ("", (), ("whole page",)),
        ("One", ("ctl",), ("first --flag", 'second "$(cat x)"')),
        ("Two", ("h1", "h2"), ("third",)),
    ]


def test_every_command_of_the_manual_says_where_it_is_typed() -> None:
    assert {one.machines for one in blocks()} <= {("source",), ("ctl",), ("h1", "h2"), ("h2",)}
    assert {"Upgrading", "Taking a host out"} <= {one.heading for one in blocks()}

"""Which controller, which token, which project: flags before environment before the context file."""

import os
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from common.codec import convert, to_json
from common.errors import Invalid
from common.secret import Secret, write_private
from controller.cli.failures import Failure

DEFAULT_PROJECT = "default"
DEFAULT_CONTEXT = "default"

ENVIRONMENT: tuple[tuple[str, str], ...] = (
    ("SKERRY_URL", "the API's URL; takes the place of the context's"),
    ("SKERRY_TOKEN", "the bearer token; takes the place of the context's"),
    ("SKERRY_PROJECT", "the project; takes the place of the context's"),
    ("SKERRY_CA", "a PEM file with the CA that signed the API's certificate, for https URLs"),
    ("SKERRY_CONTEXT", "the context to use, as --context does"),
    ("SKERRY_CONFIG", "the context file; default ~/.config/skerry/cli.toml"),
)
"""Every variable that `skerry` reads, for the reference page."""


class Context(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One controller and how to speak to it."""

    url: str
    token: str
    project: str = DEFAULT_PROJECT
    ca: str = ""


class Contexts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The context file."""

    current: str = ""
    contexts: dict[str, Context] = {}


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """What one command speaks to."""

    url: str
    token: Secret
    project: str
    ca: str
    context: str
    """The context's name; empty where all came from the environment."""

    @property
    def where(self) -> str:
        """Return the URL and where it came from, for messages."""
        return f"{self.url} ({f'context {self.context}' if self.context else 'from SKERRY_URL'})"


def file_of(environment: Mapping[str, str]) -> Path:
    """Return the path of the context file."""
    if given := environment.get("SKERRY_CONFIG"):
        return Path(given)
    home = environment.get("XDG_CONFIG_HOME") or str(Path(environment.get("HOME", "/")) / ".config")
    return Path(home) / "skerry" / "cli.toml"


def read(path: Path) -> Contexts:
    """Return the contexts in a file; none where there is no file.

    Raises Failure for a file that can't be read as one, or that others may read: it holds tokens.
    """
    try:
        mode, text = path.stat().st_mode, path.read_text()
    except FileNotFoundError:
        return Contexts()
    except OSError as err:
        raise Failure(f"{path} can't be read: {err.strerror}") from err
    if stat.S_IMODE(mode) & 0o077:
        raise Failure(f"{path} holds tokens and may be read by others", fix=f"chmod 600 {path}")
    try:
        return convert(tomllib.loads(text), Contexts, str(path))
    except (tomllib.TOMLDecodeError, Invalid) as err:
        raise Failure(
            f"{path} is no context file: {err}", fix="mend it, or move it away and add contexts anew"
        ) from err


def write(path: Path, contexts: Contexts) -> None:
    """Save the contexts in a file that only its owner may read."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_private(path, to_toml(contexts).encode())


def to_toml(contexts: Contexts) -> str:
    """Return the contexts as TOML. A TOML basic string is written as a JSON string is."""
    lines = [f"current = {_quoted(contexts.current)}"]
    for name, context in sorted(contexts.contexts.items()):
        lines += ["", f"[contexts.{_quoted(name)}]"]
        lines += [f"{key} = {_quoted(value)}" for key, value in msgspec.structs.asdict(context).items() if value]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return to_json(text).decode()


def connection_of(
    contexts: Contexts, environment: Mapping[str, str], *, context: str | None, project: str | None
) -> Connection:
    """Decide what to speak to. Raises Failure where nothing names a controller or a token.

    A context that is named by `--context` wins over SKERRY_URL and SKERRY_TOKEN; these win over the current context.
    """
    wanted = context or environment.get("SKERRY_CONTEXT") or ("" if environment.get("SKERRY_URL") else contexts.current)
    chosen = _chosen(contexts, wanted) if wanted else Context(url="", token="")
    over = {} if context else environment
    url = over.get("SKERRY_URL") or chosen.url
    token = over.get("SKERRY_TOKEN") or chosen.token
    if not url:
        raise Failure("no controller is known", fix="skerry context add NAME --url URL, or set SKERRY_URL")
    if not url.startswith(("http://", "https://")):
        raise Failure(f"{url} is no URL of a controller", fix="it looks like http://127.0.0.1:8080")
    if not token:
        raise Failure(
            f"there is no token for {url}", fix="log in (skerry login), set SKERRY_TOKEN, or skerry context add NAME"
        )
    return Connection(
        url=url.rstrip("/"),
        token=Secret(token),
        project=project or environment.get("SKERRY_PROJECT") or chosen.project,
        ca=over.get("SKERRY_CA") or chosen.ca,
        context=wanted if url == chosen.url else "",
    )


def anonymous(context: Context, name: str) -> Connection:
    """Return what a login speaks to: a context without a token."""
    return Connection(url=context.url, token=Secret(""), project=context.project, ca=context.ca, context=name)


def _chosen(contexts: Contexts, name: str) -> Context:
    if found := contexts.contexts.get(name):
        return found
    there = ", ".join(sorted(contexts.contexts)) or "none yet"
    raise Failure(f"there is no context {name}; there is {there}", fix=f"skerry context add {name} --url URL")


def names(beginning: str) -> list[str]:
    """Return the contexts whose names begin so, for completion; none where the file can't be read."""
    try:
        return [name for name in here()[1].contexts if name.startswith(beginning)]
    except Failure:
        return []


def here() -> tuple[Path, Contexts]:
    """Return this user's context file and what is in it."""
    path = file_of(os.environ)
    return path, read(path)

"""The agent's configuration file, and the command around it."""

from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from agent.config import Config, load
from agent.main import main
from common.errors import Invalid


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "agent.toml"
    path.write_text(text)
    return path


def test_every_key_can_be_set_and_the_rest_has_defaults(tmp_path: Path) -> None:
    config = load(written(tmp_path, '[agent]\nstate_dir = "/s"\n[underlay]\naddress = "10.77.0.11"\n'))

    assert config.identity_path == Path("/s/identity.pem")
    assert config.pool_path == Path("/s/volumes")
    assert config.underlay.address == "10.77.0.11"
    assert config.libvirt.uri == "qemu:///system"
    assert load(written(tmp_path, '[pool]\npath = "/p"\n')).pool_path == Path("/p")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            '[agent]\nstate_dri = "/s"\n',
            ["section [agent]", "no key state_dri", "state_dir, run_dir", "mean state_dir?"],
        ),
        ("[agnet]\n", ["no section [agnet]", "agent, underlay, libvirt, pool, log"]),
        ("agent = 3\n", ["agent is a section, not a value"]),
        ('[log]\nlevel = "loud"\n', ["log.level"]),
        ("[agent\n", ["is not TOML"]),
    ],
)
def test_a_mistake_stops_the_start_and_is_named(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(Invalid) as caught:
        load(written(tmp_path, text))
    said = f"{caught.value.detail} {caught.value.fix}"
    assert all(word in said for word in words), said


def test_a_missing_file_is_named_unless_it_is_the_default(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"none\.toml can't be read"):
        load(tmp_path / "none.toml")


def test_every_key_has_a_description() -> None:
    for section in msgspec.structs.fields(Config):
        for key in msgspec.json.schema(section.type)["$defs"][section.type.__name__]["properties"].values():
            assert key["description"]


def test_the_command_ends_with_words_not_with_a_traceback(tmp_path: Path) -> None:
    path = written(tmp_path, f'[agent]\nstate_dir = "{tmp_path}/s"\n')

    told = CliRunner().invoke(main, ["--config", str(path), "run"])

    assert told.exit_code == 1
    assert "error: this machine has not joined" in told.output
    assert "fix:   make the host" in told.output


def test_a_token_is_read_from_standard_input_and_never_repeated(tmp_path: Path) -> None:
    path = written(tmp_path, f'[agent]\nstate_dir = "{tmp_path}/s"\n')

    told = CliRunner().invoke(main, ["--config", str(path), "join", "https://127.0.0.1:1", "-"], input="skj_secret\n")

    assert told.exit_code == 1
    assert "this is no join token" in told.output
    assert "skj_secret" not in told.output

"""The configuration: what is taken, and that a mistake stops the start with words that help."""

from pathlib import Path

import pytest

from common.errors import Invalid
from controller.config import is_loopback, load, parse, split_listen


def test_an_empty_file_is_a_whole_configuration() -> None:
    config = parse("", "c.toml")

    assert config.api.listen == "127.0.0.1:8080"
    assert config.api.tls is False
    assert config.database_url == "sqlite:////var/lib/skerry-controller/skerry.db"
    assert config.images_dir == Path("/var/lib/skerry-controller/images")
    assert config.link_url == "https://127.0.0.1:8443"
    assert config.log.level == "info"


def test_a_limit_of_what_nothing_counts_stops_the_start() -> None:
    assert parse("[quota]\ndefault = { vms = 3 }", "c.toml").quota.default == {"vms": 3}
    with pytest.raises(Invalid, match=r"c.toml: quota.default limits cows, which nothing counts") as refused:
        parse("[quota]\ndefault = { cows = 3 }", "c.toml")
    assert "vms" in refused.value.fix


def test_a_full_file_is_taken_as_written() -> None:
    config = parse(
        """
        [controller]
        state_dir = "/srv/skerry"
        database = "postgresql+psycopg://skerry@db/skerry"
        [api]
        listen = "[::]:443"
        tls = true
        max_image_gib = 10
        metrics_open = false
        [link]
        listen = "10.77.0.1:8443"
        url = "https://10.77.0.1:8443"
        names = ["10.77.0.1"]
        [log]
        level = "debug"
        """,
        "c.toml",
    )

    assert config.database_url == "postgresql+psycopg://skerry@db/skerry"
    assert split_listen(config.api.listen) == ("::", 443)
    assert config.link_url == "https://10.77.0.1:8443"


def test_the_links_url_comes_from_names_and_port() -> None:
    assert parse('[link]\nnames = ["c.example.org", "10.0.0.1"]\nlisten = "0.0.0.0:9443"\n', "c").link_url == (
        "https://c.example.org:9443"
    )
    assert parse('[link]\nnames = ["fd00::1"]\n', "c").link_url == "https://[fd00::1]:8443"


def test_an_unknown_key_is_named_with_its_section_what_is_allowed_and_what_was_meant() -> None:
    with pytest.raises(Invalid) as caught:
        parse('[api]\nlisten = "127.0.0.1:1"\nlsten = "x"\n', "/etc/c.toml")

    problem = caught.value
    assert "/etc/c.toml" in problem.detail
    assert "[api]" in problem.detail
    assert "lsten" in problem.detail
    assert "max_image_gib" in problem.detail
    assert "did you mean listen?" in problem.fix
    assert problem.errors[0].field == "api.lsten"


def test_an_unknown_section_is_named_with_those_there_are() -> None:
    with pytest.raises(Invalid) as caught:
        parse("[logs]\nlevel = 'info'\n", "c.toml")

    assert "[logs]" in caught.value.detail
    assert "controller, api, link, audit, quota, metrics, log" in caught.value.detail
    assert "did you mean log?" in caught.value.fix


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("api = 1", "api is a section"),
        ("[api]\nlisten = 8080", "api.listen"),
        ('[api]\nlisten = "8080"', "api.listen"),
        ('[api]\nlisten = "127.0.0.1:99999"', "a port is 0 to 65535"),
        ('[api]\nlisten = "127.0.0.1:80\\n"', "api.listen"),
        ('[api]\ntls = "yes"', "api.tls"),
        ("[api]\nmax_image_gib = 0", "api.max_image_gib"),
        ('[log]\nlevel = "loud"', "log.level"),
        ("[link]\nnames = []", "link.names"),
        ('[link]\nurl = "http://x"', "link.url"),
        ('[link]\nurl = "https://x:port"', "link.url"),
        ('[controller]\nstate_dir = ""', "state_dir"),
        ("[api\n", "not TOML"),
        ("[api]\ntls = true\ntls = false\n", "not TOML"),
    ],
)
def test_a_bad_value_is_named(text: str, words: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse(text, "c.toml")

    assert "c.toml" in caught.value.detail
    assert words in caught.value.detail


@pytest.mark.parametrize("listen", ["0.0.0.0:8080", ":8080", "[::]:8080", "192.0.2.1:80", "api.example.org:80"])
def test_tokens_never_cross_the_network_readable(listen: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse(f'[api]\nlisten = "{listen}"\n', "c.toml")

    assert listen in caught.value.detail
    assert "api.tls = true" in caught.value.fix
    assert "127.0.0.1" in caught.value.fix
    assert parse(f'[api]\nlisten = "{listen}"\ntls = true\n', "c.toml").api.tls


def test_loopback_is_an_address_of_this_machine_only() -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("127.8.8.8")
    assert is_loopback("::1")
    assert is_loopback("localhost")
    assert not is_loopback("127.0.0.1.evil.example")
    assert not is_loopback("0.0.0.0")


def test_a_file_that_is_not_there_or_not_text_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(Invalid) as missing:
        load(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(Invalid) as binary:
        load(tmp_path / "bad.toml")

    assert "none.toml" in missing.value.detail
    assert "--config" in missing.value.fix
    assert "UTF-8" in binary.value.detail


def test_a_file_on_disk_is_read(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[log]\nlevel = 'error'\n")

    assert load(tmp_path / "c.toml").log.level == "error"

"""The `skerry` command against a real controller process: what is printed, and the exit codes."""

import json
import os
import pty
import re
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cli_world import SKERRY, World, configure, controller_command, wait_ready

from lab.machine import free_port


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A controller with project shop, size small, network default and an empty image tiny; no host."""
    home = tmp_path_factory.mktemp("cli")
    config, url = configure(home)
    subprocess.run(controller_command(config, "init"), check=True, capture_output=True, timeout=60)
    token = subprocess.run(
        controller_command(config, "token", "--name", "root"), check=True, capture_output=True, text=True, timeout=60
    ).stdout.strip()
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(controller_command(config, "run"), stdout=log, stderr=log)
    try:
        wait_ready(url, process)
        made = World(url=url, token=token, home=home)
        made.skerry("project", "create", "shop", "--keep-deleted-s", "0", "--wait")
        made.skerry("network", "create", "default", "--wait")
        made.skerry("size", "create", "small", "--vcpus", "1", "--memory-mib", "256", "--disk-gib", "2", "--wait")
        made.skerry("image", "create", "tiny", "--format", "raw", "--wait")
        yield made
    finally:
        process.terminate()
        process.wait(timeout=20)


def test_quotas_are_set_shown_and_refuse_with_the_way_out(world: World) -> None:
    shown = world.skerry("quota", "set", "shop", "--networks", "2", "--image-gib", "none", "--images", "1")
    lines = {line.split()[0]: line.split()[1:] for line in shown.out.splitlines()}
    assert lines["networks"][:2] == ["1", "2"]
    assert lines["networks"][2:] == ["█" * 10 + "░" * 10, "50", "%", "project"]
    assert lines["images"][:2] == ["1", "1"]
    assert lines["image_gib"] == ["0", "none"]
    assert world.skerry("quota", "show").out == shown.out == world.skerry("project", "quota", "shop").out
    dry = world.skerry("network", "create", "second", "--dry-run")
    assert "quota of project shop: networks 1 → 2 of 2" in dry.out
    for more in ((), ("--dry-run",)):
        refused = world.skerry("image", "create", "second", *more, code=4)
        assert "project shop may have 1 images, has 1, and this asks for 1 more" in refused.err
        assert "skerry quota set shop --images 2" in refused.err
    lowered = world.skerry("quota", "set", "shop", "--networks", "0", "--images", "default")
    assert "over its limit" in lowered.out
    world.skerry("quota", "set", "--domain", "default", "--vms", "7", "--dry-run")
    whole = world.skerry("quota", "set", "--domain", "default", "--vms", "7")
    assert "vms" in whole.out
    assert "all projects of domain default together" in world.skerry("quota", "show", "shop").out
    world.skerry("quota", "set", "--domain", "default", "--vms", "none")
    world.skerry("quota", "set", "shop", "--networks", "default")
    assert json.loads(world.skerry("project", "show", "shop", "-o", "json").out)["spec"]["quota"] == {"image_gib": None}
    assert world.skerry("audit", "quotas").out.endswith("differences: 0\n")


def test_a_network_lives_and_goes_as_printed(world: World) -> None:
    created = world.skerry("network", "create", "backend", "--cidr", "10.30.0.0/24", "--wait")
    assert created.out.splitlines()[0].split() == ["NAME", "STATE", "CIDR", "VNI", "PORTS", "HOSTS"]
    assert created.out.splitlines()[1].startswith("backend  active  10.30.0.0/24")
    assert "network backend: accepted" in created.err
    assert "backend" in world.skerry("network", "list").out
    gone = world.skerry("network", "delete", "backend", "--wait")
    assert gone.out.startswith("network backend is gone")
    assert "backend" not in world.skerry("network", "list").out


def test_a_cloud_without_hosts_has_room_for_nothing(world: World) -> None:
    lines = world.skerry("capacity").out.splitlines()
    assert lines[0].split() == ["SIZE", "ZONE", "FITS", "ONE", "HOST", "LOST", "LIMITED", "BY"]
    assert lines[1].split() == ["small", "all", "0", "0", "-"]
    assert json.loads(world.skerry("capacity", "--size", "small", "-o", "json").out)["items"][0]["fits"]["fits"] == 0
    assert "there is no zone z9" in world.skerry("capacity", "--zone", "z9", code=None).err


def test_json_and_yaml_are_the_resource_of_the_api(world: World) -> None:
    shown = json.loads(world.skerry("size", "show", "small", "-o", "json").out)
    assert shown["spec"].items() >= {"vcpus": 1, "memory_mib": 256, "disk_gib": 2}.items()
    assert yaml.safe_load(world.skerry("size", "show", "small", "-o", "yaml").out) == shown
    assert shown in json.loads(world.skerry("size", "list", "-o", "json").out)
    assert world.skerry("size", "list", "-o", "name").out == "small\n"


def test_show_gives_names_for_ids(world: World) -> None:
    world.skerry("vm", "create", "named", "--image", "tiny", "--size", "small")
    shown = world.skerry("vm", "show", "named").out
    assert re.search(r"^spec\.size +small$", shown, re.MULTILINE)
    assert re.search(r"^spec\.networks +default$", shown, re.MULTILINE)
    world.skerry("vm", "delete", "named", "--wait")


def test_a_dry_run_changes_nothing_and_says_what_it_would(world: World) -> None:
    made = world.skerry("network", "create", "rehearsed", "--dry-run")
    assert made.out.startswith("dry run: network rehearsed, nothing is kept")
    world.skerry("network", "show", "rehearsed", code=1)
    blocked = world.skerry("vm", "create", "web", "--image", "tiny", "--size", "small", "--dry-run")
    assert "then: waits: image tiny has no content yet" in blocked.out
    assert "gone" not in world.skerry("network", "delete", "default", "--dry-run").out
    assert (
        "would change spec.description" in world.skerry("project", "set", "shop", "--description", "x", "--dry-run").out
    )
    taken = ("--vcpus", "1", "--memory-mib", "256", "--disk-gib", "2", "--dry-run")
    assert "error: there is a size small already" in world.skerry("size", "create", "small", *taken, code=1).err


def test_what_is_revealed_is_printed_once_and_is_in_the_json(world: World) -> None:
    assert re.search(r"^ {2}skt_[0-9a-f]{64}$", world.skerry("token", "create", "ci").out, re.MULTILINE)
    made = json.loads(world.skerry("token", "create", "other", "--role", "reader", "--wait", "-o", "json").out)
    assert made["revealed"].startswith("skt_")
    who = json.loads(world.skerry("whoami", "-o", "json", SKERRY_TOKEN=made["revealed"]).out)
    assert (who["actor"], who["role"]) == ("shop/other", "reader")
    assert "revealed" not in json.loads(world.skerry("token", "show", "other", "-o", "json").out)
    world.skerry("token", "delete", "ci", "other", "--wait")
    assert "error: " in world.skerry("whoami", SKERRY_TOKEN=made["revealed"], code=1).err


def test_a_host_shows_the_line_to_paste_and_a_new_one_replaces_it(world: World) -> None:
    line = re.compile(r"skerry-agent join https://127\.0\.0\.1:\d+ (skj_[0-9a-f]{64}\.[0-9a-f]{64})")
    first = line.search(world.skerry("host", "create", "h1").out)
    second = line.fullmatch(world.skerry("host", "token", "h1").out.strip())
    assert first
    assert second
    assert first[1] != second[1]
    assert "h1" in world.skerry("host", "list").out
    assert "not connected" in world.skerry("audit", "host", "h1", code=1).err
    world.skerry("host", "delete", "h1", "--wait")


def test_set_changes_what_is_given_and_keeps_the_rest(world: World) -> None:
    world.skerry("host", "create", "h2", "--label", "rack=r1", "--label", "old=x")
    world.skerry("host", "set", "h2", "--no-schedulable", "--label", "row=7", "--label", "old-", "--wait")
    shown = json.loads(world.skerry("host", "show", "h2", "-o", "json").out)
    assert shown["labels"] == {"rack": "r1", "row": "7"}
    assert shown["spec"]["schedulable"] is False
    assert shown["spec"]["cpu_overcommit"] == 4.0
    assert world.skerry("host", "list", "-l", "row=7", "-o", "name").out == "h2\n"
    assert world.skerry("host", "list", "-l", "row=8", "-o", "name").out == ""
    world.skerry("host", "delete", "h2", "--wait")


def test_set_without_a_flag_is_a_usage_error(world: World) -> None:
    assert "nothing to set" in world.skerry("host", "set", "h9", code=2).err


def test_no_host_that_fits_exits_4_with_the_refusal(world: World, tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(1 << 20))
    world.skerry("image", "create", "blank", "--format", "raw", "--wait")
    uploaded = world.skerry("image", "upload", "blank", str(disk), "--wait")
    assert "uploading disk.raw, 1.0 MiB" in uploaded.err
    ended = world.skerry("vm", "create", "big", "--image", "blank", "--size", "small", "--wait", code=4)
    assert ended.err.count("error: vm big: create is blocked") == 1
    assert "skerry operation wait op-" in ended.err
    why = world.skerry("why", "vm", "big")
    assert re.search(r"^state +(blocked|waiting|unplaced)", why.out, re.MULTILINE)
    assert "blocked" in world.skerry("operation", "list", "--state", "blocked").out
    assert "big" in world.skerry("status").out
    world.skerry("vm", "delete", "big", "--wait")
    assert world.skerry("vm", "list", "-o", "name").out == ""
    world.skerry("image", "delete", "blank", "--wait")


def test_what_is_not_finished_in_time_exits_5_and_goes_on(world: World) -> None:
    late = world.skerry(
        "vm", "create", "late", "--image", "tiny", "--size", "small", "--wait", "--timeout", "1", code=5
    )
    operation = re.search(r"skerry operation wait (op-[0-9a-z]{12})", late.err)
    assert operation
    assert "late" in world.skerry("vm", "list", "-o", "name").out
    assert operation[1] in world.skerry("operation", "list", "--state", "running", "-o", "name").out
    world.skerry("operation", "cancel", operation[1])
    assert "cancelled" in world.skerry("operation", "wait", operation[1], code=3).err
    world.skerry("operation", "wait", operation[1], code=3)
    assert "state" in world.skerry("operation", "show", operation[1]).out


def test_an_error_says_what_where_and_the_way_out(world: World) -> None:
    missing = world.skerry("vm", "create", "y", "--image", "nope", "--size", "small", code=1).err.splitlines()
    assert missing[0] == "error: there is no image nope in project shop"
    assert missing[1].startswith("  fix: there is tiny")
    assert re.fullmatch(r" {2}not-found, request req-[0-9a-z]{12}", missing[2])
    assert world.skerry("vm", "show", "nobody", code=1).out == ""


def test_a_wrong_command_line_exits_2_before_anything_is_sent(world: World) -> None:
    nowhere = {"SKERRY_URL": "http://127.0.0.1:1"}
    assert "--vcpus" in world.skerry("size", "create", "s", code=2, **nowhere).err
    assert "Did you mean network?" in world.skerry("netwrok", code=2, **nowhere).err
    assert (
        "is not in the range"
        in world.skerry(
            "size", "create", "s", "--vcpus", "0", "--memory-mib", "64", "--disk-gib", "1", code=2, **nowhere
        ).err
    )
    assert "No such option" in world.skerry("vm", "create", "x", "--power", "stopped", code=2, **nowhere).err


def test_no_connection_says_which_url_and_what_to_try(world: World) -> None:
    port = free_port()
    ended = world.skerry("vm", "list", code=1, SKERRY_URL=f"http://127.0.0.1:{port}")
    assert f"http://127.0.0.1:{port} (from SKERRY_URL): Connection refused" in ended.err
    assert f"curl http://127.0.0.1:{port}/healthz" in ended.err


def test_contexts_are_kept_privately_and_the_flag_beats_the_environment(world: World) -> None:
    file = world.home / "contexts" / "cli.toml"
    here = {"SKERRY_CONFIG": str(file)}
    bare = {**here, "SKERRY_URL": "", "SKERRY_TOKEN": "", "SKERRY_PROJECT": ""}
    world.skerry("context", "add", "lab", "--url", world.url, "-p", "shop", stdin=world.token + "\n", **bare)
    world.skerry("context", "add", "far", "--url", "http://127.0.0.1:1", "--no-use", stdin="skt_x", **bare)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "context lab" in world.skerry("whoami", **bare).out
    assert "context far" in world.skerry("--context", "far", "whoami", code=1, **bare).err
    assert "context far" in world.skerry("whoami", "--context", "far", code=1, **here).err
    assert "tiny" in world.skerry("image", "list", **bare).out
    assert "tiny" not in world.skerry("image", "list", "-p", "system", **bare).out
    world.skerry("context", "use", "far", **bare)
    assert "127.0.0.1:1" in world.skerry("whoami", code=1, **bare).err
    world.skerry("context", "remove", "far", **bare)
    listed = world.skerry("context", "list", **bare).out
    assert "lab" in listed
    assert "far" not in listed
    file.chmod(0o644)
    assert "chmod 600" in world.skerry("whoami", code=1, **bare).err


def test_a_token_is_never_taken_from_the_command_line(world: World) -> None:
    assert "No such option" in world.skerry("context", "add", "x", "--url", "http://x", "--token", "t", code=2).err


def test_events_are_printed_and_followed(world: World) -> None:
    numbers = [int(line) for line in world.skerry("events", "-o", "name").out.split()]
    assert numbers == sorted(set(numbers))
    tail = world.skerry("events", "--after", str(numbers[-2]), "-o", "json").out
    assert json.loads(tail.splitlines()[0])["seq"] == numbers[-1]
    follow = subprocess.Popen(
        ["env", "--default-signal=INT", *SKERRY, "events", "--after", str(numbers[-1]), "--follow"],
        env=world.environment(PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        time.sleep(1.5)
        world.skerry("network", "create", "followed", "--wait")
        assert follow.stdout
        assert "network.create" in follow.stdout.readline()
        follow.send_signal(signal.SIGINT)
        _, err = follow.communicate(timeout=10)
        assert (follow.returncode, err) == (130, "")
    finally:
        follow.kill()
        follow.communicate()
    world.skerry("network", "delete", "followed", "--wait")


def test_names_are_completed_from_the_api(world: World) -> None:
    def completed(line: str) -> list[str]:
        words = line.split(" ")
        done = subprocess.run(
            SKERRY,
            env=world.environment(_SKERRY_COMPLETE="bash_complete", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1)),
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        return [one.partition(",")[2] for one in done.stdout.splitlines()]

    assert completed("skerry image show ti") == ["tiny"]
    assert completed("skerry vm create web --size s") == ["small"]
    assert completed("skerry vm cr") == ["create"]
    assert "vm" in completed("skerry v")


def test_completion_scripts_are_printed_for_each_shell(world: World) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_SKERRY_COMPLETE" in world.skerry("completion", shell).out


def test_on_a_terminal_states_are_coloured_and_delete_asks_nothing(world: World) -> None:
    world.skerry("network", "create", "shown", "--wait")
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [*SKERRY, "network", "delete", "shown", "--wait"],
        env=world.environment(TERM="xterm"),
        stdin=follower,
        stdout=subprocess.PIPE,
        stderr=follower,
        text=True,
    ) as process:
        out, _ = process.communicate(timeout=30)
    os.close(follower)
    os.close(leader)
    assert process.returncode == 0
    assert out.startswith("network shown is gone")


def test_help_imports_neither_aiohttp_nor_rich(world: World) -> None:
    done = subprocess.run(
        [SKERRY[0], "-X", "importtime", *SKERRY[1:], "vm", "create", "--help"],
        env=world.environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert "--image" in done.stdout
    assert " aiohttp\n" not in done.stderr
    assert " rich" not in done.stderr


def test_alone_it_shows_what_there_is_and_three_examples(world: World) -> None:
    shown = world.skerry().out
    for words in ("skerry vm create web", "skerry console web", "skerry vm delete web", "Every day", "Setting up"):
        assert words in shown
    assert world.skerry("--version").out.startswith("skerry 0.")


def test_who_logs_in_acts_by_what_is_bound_until_the_session_ends(world: World, tmp_path: Path) -> None:
    made = world.skerry("user", "create", "bob", "--wait", "-o", "json")
    first = json.loads(made.out)["revealed"]
    world.skerry("binding", "create", "bob-reads", "--user", "bob", "--role", "reader", "--project", "shop", "--wait")
    own = {"SKERRY_CONFIG": str(tmp_path / "contexts.toml"), "SKERRY_TOKEN": "", "SKERRY_URL": ""}

    wrong = world.skerry("login", "--user", "bob", "--url", world.url, stdin="not it at all\n", code=1, **own)
    assert "unauthenticated" in wrong.err
    shown = world.skerry("login", "--user", "bob", "--url", world.url, stdin=f"{first}\n", **own)
    assert "speaks for bob for the next" in shown.out
    assert first not in (tmp_path / "contexts.toml").read_text()
    assert world.skerry("network", "list", "-o", "name", **own).out == "default\n"
    refused = world.skerry("network", "create", "mine", code=1, **own)
    assert "lacks network.create" in refused.err

    changed = world.skerry("user", "password", "bob", stdin=f"{first}\na better password\n", **own)
    assert "sessions from before have ended" in changed.out
    assert "unauthenticated" in world.skerry("network", "list", code=1, **own).err
    world.skerry("login", "--user", "bob", stdin="a better password\n", **own)
    assert world.skerry("logout", **own).out == "the session has ended\n"
    world.skerry("whoami", code=None, **own)
    assert world.skerry("network", "list", code=None, **own).code != 0

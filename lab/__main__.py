"""`python -P -m lab VERB`: what the Makefile's targets run, with words for people."""

import argparse
import os
import sys
import time
from pathlib import Path

from common.errors import NotFound, SkerryError, Temporary
from lab.box import box
from lab.cloud import IMAGE, KEYPAIR, PROJECT, SIZE, Lab, told
from lab.guest import tiny
from lab.layout import ROOT
from lab.metal import Metal
from lab.processes import alive

VERBS = ("up", "down", "stop", "start", "status", "guest", "shell", "box", "metal-up", "metal-down")
HELLO = "hello"
_BOOT_S = 90.0
_BOOT_MARK = "skerry-tiny: Linux"
_BAR = "    | "


class Progress:
    """Says what is done, and when, counted from the start."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self._started

    def __call__(self, line: str) -> None:
        print(f"[{self.seconds:5.1f} s] {line}", flush=True)


def up(name: str, hosts: int) -> None:
    """Bring up a lab with a first VM in it, and say how to go on."""
    say = Progress()
    lab = Lab(name, say=say)
    say(f"lab {name}: a controller and {hosts} {'host' if hosts == 1 else 'hosts'} (logs in {lab.layout.logs})")
    lab.up(hosts)
    lab.furnish()
    api, path = lab.api, f"/v1/projects/{PROJECT}/vms"
    found, before = api.find(f"{path}/{HELLO}"), 0
    if found is None:
        say(f"creating VM {HELLO}; its console:")
        api.create(path, HELLO, {"image": IMAGE, "size": SIZE, "keypairs": [KEYPAIR]})
    elif found.spec.get("power") == "stopped":
        say(f"VM {HELLO} was stopped, starting it; its console:")
        before = len(lab.serial_log(HELLO))
        api.do(f"{path}/{HELLO}/start")
    else:
        say(f"VM {HELLO} exists already; its console:")
    show_console(lab, HELLO, before)
    hello = api.wait(f"{path}/{HELLO}", lambda seen: seen.state == "running", "running", timeout_s=_BOOT_S)
    skerry = lab.link_command()
    say(f"VM {HELLO} runs at {', '.join(hello.status.get('addresses', []))} on {hello.status.get('host', '?')}")
    print(
        f"\nThe cloud is up, with {len(lab.hosts())} host(s), after {say.seconds:.1f} s. API: {lab.url}\n\nTry next:\n"
        f"  {skerry} vm create web --image {IMAGE} --size {SIZE} --wait\n"
        f"  {skerry} vm list\n"
        f"  {skerry} console web\n\n"
        f"Remove all of it: make down{'' if name == 'default' else f' NAME={name}'}"
    )


def show_console(lab: Lab, vm: str, before: int = 0) -> None:
    """Print a VM's console from its last boot on, as it comes, up to the login prompt; `before` characters are past."""
    shown, deadline = 0, time.monotonic() + _BOOT_S
    while time.monotonic() < deadline:
        log = lab.serial_log(vm)
        text = log[before if before <= len(log) else 0 :].replace("\r", "")
        text = text[max(text.rfind(_BOOT_MARK), 0) :]
        if shown < len(text):
            sys.stdout.write((_BAR if shown == 0 else "") + text[shown:].replace("\n", f"\n{_BAR}"))
            sys.stdout.flush()
        shown = len(text)
        if " login:" in text:
            print()
            return
        time.sleep(0.2)
    seen = lab.vm(vm)
    raise Temporary(
        f"VM {vm} showed no login prompt in {_BOOT_S:.0f} s ({seen.state}: {seen.message})",
        fix=f"`{lab.layout.skerry} why vm {vm}`, and read {lab.layout.logs}",
    )


def down(name: str) -> None:
    """Remove a lab."""
    say = Progress()
    Lab(name, say=say).down()
    say(f"lab {name} is gone: no process, namespace, interface, mount or link of it is left")


def status(name: str) -> None:
    """Say what runs of a lab."""
    lab = Lab(name)
    if not lab.layout.folder.exists():
        print(f"lab {name} is not there; make one: make up" + ("" if name == "default" else f" NAME={name}"))
        return
    pid = lab.controller.pid()
    print(f"controller  {f'process {pid}, {lab.url}' if pid and alive(pid) else 'off'}")
    for host in lab.hosts():
        agent = host.agent()
        state = "off" if host.init() is None else f"on at {host.address}, agent {agent or 'stopped'}"
        print(f"host {host.name:<6} {state}")
    print(f"logs        {lab.layout.logs}")


def shell(name: str, host: str) -> None:
    """Become a shell inside a host."""
    line = Lab(name).host(host).line(["bash", "-i"])
    os.execvp(line[0], line)  # noqa: S606  a shell for a person is the point


def main() -> int:
    """Do what the words say; errors are told without a traceback."""
    parser = argparse.ArgumentParser(prog="lab", description=__doc__)
    parser.add_argument("verb", choices=VERBS)
    parser.add_argument("--name", default="default", help="the lab's name; several may run side by side")
    parser.add_argument("--hosts", type=int, default=1, help="how many hosts to bring up at least")
    parser.add_argument("--host", default="h1", help="the host in which to open a shell")
    words = parser.parse_args()
    if os.geteuid() != 0:
        print("the lab makes network namespaces and mounts, for which it has to be root: sudo make up", file=sys.stderr)
        return 1
    try:
        _do(words.verb, words.name, words.hosts, words.host)
    except SkerryError as err:
        print(f"\n{words.verb} failed: {told(err)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{words.verb} was interrupted; run it again to go on, or `make down` to remove it", file=sys.stderr)
        return 130
    return 0


def _do(verb: str, name: str, hosts: int, host: str) -> None:
    match verb:
        case "up":
            up(name, hosts)
        case "down":
            down(name)
        case "stop":
            Lab(name, say=Progress()).stop()
        case "start":
            Lab(name, say=Progress()).start()
        case "status":
            status(name)
        case "guest":
            print(tiny(Path(ROOT) / "build" / "guest"))
        case "shell":
            shell(name, host)
        case "box":
            print(box(Path(ROOT) / "build" / "box").disk)
        case "metal-up":
            Metal(say=Progress()).up(hosts)
        case "metal-down":
            Metal(say=Progress()).down()
        case _:
            raise NotFound(f"there is no verb {verb}")


if __name__ == "__main__":
    sys.exit(main())

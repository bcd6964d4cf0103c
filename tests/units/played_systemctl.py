#!/usr/bin/python3
"""Plays `systemctl` for one unit, skerry-controller: Type=notify, Restart=always, and its condition on `hold`.

It stands alone: it is copied to where there is no systemd, as `systemctl`, and `journalctl` for what the unit printed.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

HERE = Path("/run/played")
HOLD = Path("/var/lib/skerry-upgrade/hold")


def put(name: str, text: object) -> None:
    (HERE / f"{name}-part").write_text(str(text))
    (HERE / f"{name}-part").rename(HERE / name)


def get(name: str, default: str) -> str:
    return (HERE / name).read_text() if (HERE / name).exists() else default


def supervise() -> None:
    """Run the unit until it is stopped."""
    put("pid", os.getpid())
    restarts = 0
    while True:
        put("restarts", restarts)
        put("active", "activating")
        put("sub", "start")
        run_once(f"played-{os.getpid()}-{restarts}")
        put("sub", "auto-restart")
        restarts += 1
        time.sleep(2)


def run_once(name: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard, (HERE / "journal").open("a") as out:
        heard.bind(f"\0{name}")
        heard.settimeout(0.1)
        environment = {**os.environ, "NOTIFY_SOCKET": f"@{name}"}
        process = subprocess.Popen(["/usr/bin/skerry-controller", "run"], stdout=out, stderr=out, env=environment)
        signal.signal(signal.SIGTERM, lambda *_: end(process))
        while process.poll() is None:
            try:
                if b"READY=1" in heard.recv(4096):
                    put("active", "active")
            except TimeoutError:
                continue


def end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    process.wait()
    put("active", "inactive")
    os._exit(0)


def stop() -> None:
    pid = int(get("pid", "0"))
    if pid:
        (HERE / "pid").unlink()
        os.kill(pid, signal.SIGTERM)
        while get("active", "inactive") != "inactive":
            time.sleep(0.05)


def start(*, wait: bool) -> None:
    if HOLD.exists() or (HERE / "pid").exists():
        return
    put("active", "activating")
    put("sub", "start")
    put("restarts", 0)
    put("pid", 0)
    if os.fork() == 0:
        os.setsid()
        quiet = os.open("/dev/null", os.O_RDWR)
        for number in range(3):
            os.dup2(quiet, number)
        supervise()
    while wait and get("active", "") != "active" and get("sub", "") != "auto-restart":
        time.sleep(0.05)


def main() -> None:
    HERE.mkdir(exist_ok=True)
    if Path(sys.argv[0]).name == "journalctl":
        if "--sync" in sys.argv:
            return
        print(*get("journal", "").splitlines()[-30:], sep="\n")
        return
    match [word for word in sys.argv[1:] if not word.startswith("-")]:
        case ["stop", *_]:
            stop()
        case ["start", *_]:
            start(wait="--no-block" not in sys.argv)
        case ["show", *_]:
            print(f"ActiveState={get('active', 'inactive')}")
            print(f"SubState={get('sub', 'dead')}\nNRestarts={get('restarts', '0')}")
        case _:
            pass


main()

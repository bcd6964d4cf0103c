"""Certificates on real hosts, with the clocks of all machines set: they renew, or run out and say so."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lab.metal import CONTROLLER
from tests.lab.operator import HOSTS, Operator, wait

pytestmark = [pytest.mark.lab, pytest.mark.timeout(3600)]

STEP_DAYS = 16
"""More than half of what a host's certificate is good for, and less than all of it."""

IDENTITY = "/var/lib/skerry-agent/identity.pem"


def test_certificates_renew_in_time_and_one_that_ran_out_needs_a_token(operator: Operator) -> None:
    before = {host: operator.processes(host) for host in HOSTS}
    with _moved(operator) as move:
        move()
        for host in HOSTS:
            _until_renewed(operator, host)
        operator.until_reached()
        operator.metal.run("h2", "systemctl stop skerry-agent")
        for _ in range(2):
            move()
            _until_renewed(operator, "h1")
        with operator.journal("h2", "skerry-agent") as said:
            operator.metal.run("h2", "systemctl start skerry-agent")
            wait(lambda: "ran out on" in said(), said)
        assert "ran out on" in operator.happened("--kind host", "--name h2", "--action host.turned-away")
        _join_anew(operator, "h2")
        operator.until_ready()
        operator.until_reached()
        operator.until_clean()
    assert {host: operator.processes(host) for host in HOSTS} == before
    operator.until_reached()
    operator.until_clean()


@contextmanager
def _moved(operator: Operator) -> Iterator["Move"]:
    """Give what sets all clocks forth by a step. Afterwards they are right again, and certificates good."""
    move = Move(operator)
    try:
        yield move
    finally:
        move.back()
        for host in HOSTS:
            _join_anew(operator, host)
        operator.until_ready()


class Move:
    """The clocks of all machines, which no service keeps right."""

    def __init__(self, operator: Operator) -> None:
        self._operator = operator
        self._days = 0

    def __call__(self) -> None:
        """Set them forth by a step."""
        self._set(STEP_DAYS)

    def back(self) -> None:
        """Set them back to where they were."""
        self._set(-self._days)

    def _set(self, days: int) -> None:
        self._days += days
        for machine in (CONTROLLER, *HOSTS):
            kept = self._operator.metal.run(machine, "timedatectl show --property NTP --value")
            assert kept.strip() == "no", f"a service keeps the clock of {machine}"
            self._operator.metal.run(machine, f"date -u -s @$(($(date +%s) + {days * 86400}))")


def _until_renewed(operator: Operator, host: str) -> None:
    def renewed() -> bool:
        end = f'date -d "$(openssl x509 -enddate -noout -in {IDENTITY} | cut -d= -f2)" +%s'
        return int(operator.metal.run(host, f"echo $((($({end}) - $(date +%s)) / 86400))")) >= STEP_DAYS

    wait(renewed, lambda: f"the certificate of {host} was not renewed")
    assert "certificate renewed" in operator.metal.run(host, "journalctl -q -o cat -u skerry-agent -n 200")


def _join_anew(operator: Operator, host: str) -> None:
    """Have a host join with a token, as docs/operators.md says for one whose certificate ran out."""
    line = re.search(r"skerry-agent join (\S+) (\S+)", operator.type(f"skerry host token {host}"))
    assert line is not None
    operator.metal.run(host, f"echo {line[2]} | skerry-agent join --force {line[1]} -")

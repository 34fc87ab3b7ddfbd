"""Connections kept for the next message that are dead by then: replaced at once, and no failure of the message."""

from __future__ import annotations

import asyncio
import time

import pytest
from delivery_samples import FAILED, OK, DeliverTo, Start, attempt, replaced, results, smarthost
from support.sinks import DROP, RESET, STALL
from support.wait import wait_until

PATIENT_S = 300  # [outbound] command_timeout_s as it is by default: what nothing here may wait for


@pytest.mark.parametrize("end", [DROP, RESET, "421 4.4.2 idle too long", "421 4.3.2 going down\r\n250 2.1.0 ok"])
@pytest.mark.parametrize("pipelining", [True, False])
async def test_a_kept_connection_that_died_is_no_failure(
    scripted_remote: Start, deliver_to: DeliverTo, end: str, pipelining: bool
) -> None:
    """Servers end idle connections as they like: silently, with RST, or with 421."""
    remote = scripted_remote(
        replies={"MAIL": ["250 ok", end, "250 ok", end]}, extensions=("PIPELINING",) if pipelining else ()
    )
    deliver = deliver_to(replaced(smarthost(remote.port), command_timeout_s=PATIENT_S))
    for _ in range(3):
        assert results(await deliver.attempt(attempt("a@far.test"))) == [(OK, "2.0.0")]
    assert (len(remote.messages), remote.connections) == (3, 3)


async def test_a_remote_that_was_started_anew_gets_the_next_message_at_once(
    scripted_remote: Start, deliver_to: DeliverTo
) -> None:
    """Its end was heard of meanwhile: nothing is tried on the old connection."""
    remote = scripted_remote()
    deliver = deliver_to(replaced(smarthost(remote.port), command_timeout_s=PATIENT_S))
    assert results(await deliver.attempt(attempt("a@far.test"))) == [(OK, "2.0.0")]
    remote.stop()
    again = scripted_remote(port=remote.port)
    (entry,) = deliver._kept._waiting
    await wait_until(lambda: not entry.connection.usable, what="the end of the connection is seen")
    assert results(await deliver.attempt(attempt("a@far.test"))) == [(OK, "2.0.0")]
    assert (again.connections, len(again.messages)) == (1, 1)


async def test_a_kept_connection_that_went_silent_is_left_for_a_new_one_within_seconds(
    scripted_remote: Start, deliver_to: DeliverTo
) -> None:
    """A firewall has forgotten it, or the other program hangs: no reply to MAIL, and nothing is lost by asking anew.
    Others that are idle for longer are as dead, and are not waited for one by one."""
    remote = scripted_remote()
    deliver = deliver_to(replaced(smarthost(remote.port), command_timeout_s=PATIENT_S))
    await asyncio.gather(*(deliver.attempt(attempt("a@far.test")) for _ in range(3)))
    assert len(deliver._kept._waiting) == 3
    remote.replies["MAIL"] = [STALL]
    began = time.monotonic()
    assert results(await deliver.attempt(attempt("b@far.test"))) == [(OK, "2.0.0")]
    assert time.monotonic() - began < 15
    assert (len(remote.messages), remote.connections) == (4, 4)


async def test_a_refused_transaction_on_a_connection_that_went_silent_is_no_failure_either(
    scripted_remote: Start, deliver_to: DeliverTo
) -> None:
    """There RSET is the first command."""
    remote = scripted_remote(replies={"RCPT": ["550 5.1.1 no"], "RSET": [STALL]})
    deliver = deliver_to(replaced(smarthost(remote.port), command_timeout_s=PATIENT_S))
    assert results(await deliver.attempt(attempt("a@far.test"))) == [(FAILED, "5.1.1")]
    began = time.monotonic()
    assert results(await deliver.attempt(attempt("a@far.test"))) == [(OK, "2.0.0")]
    assert time.monotonic() - began < 15
    assert remote.connections == 2

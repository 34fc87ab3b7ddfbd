"""Transactions that never bring a message: what was begun for them ends."""

from __future__ import annotations

import asyncio
import smtplib
from pathlib import Path

from support.flow import mail_in
from support.tls import TlsFiles
from support.wait import wait_until

from pymx.checks.check import Facts, Stage
from pymx.checks.pipeline import Pipeline
from pymx.checks.verdict import Verdict


class Asking:
    """A check whose name servers never answer."""

    name = "asking"
    stages = (Stage.MAIL,)
    needs: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.begun = self.now = 0

    async def run(self, stage: Stage, facts: Facts) -> Verdict:
        self.begun += 1
        self.now += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.now -= 1
        return Verdict()

    def unavailable(self, facts: Facts, reason: str) -> Verdict:
        return Verdict(word="unknown", reason=reason)

    async def close(self) -> None:
        """Nothing is held."""


async def test_a_peer_that_begins_again_and_again_has_us_ask_once_at_a_time(
    tmp_path: Path, tls_files: TlsFiles
) -> None:
    """MAIL, RCPT, RSET: a domain each, of the peer's choice, whose questions take as long as they may."""
    check = Asking()
    checks = Pipeline([check], hostname="mx.example.test", timeout_s=60, junk_score=5)
    async with mail_in(tmp_path, tls=tls_files.server_context(), checks=checks) as flow:

        def dialogue() -> None:
            with smtplib.SMTP("127.0.0.1", flow.ports["smtp"], "far.test") as client:
                client.ehlo()
                for number in range(20):
                    client.mail(f"x@{number}.test")
                    assert client.rcpt("alice@example.test")[0] == 250
                    client.rset()

        await flow.blocking(dialogue)
        await wait_until(lambda: check.begun == 20 and check.now == 0)
    await checks.close()

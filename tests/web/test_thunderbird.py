"""A real Thunderbird finds the settings by itself: its own code fetches our pages and reads them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from pages_rig import config, pages
from support.thunderbird import Thunderbird

_FETCH = """
const { FetchConfig } = ChromeUtils.importESModule("resource:///modules/accountcreation/FetchConfig.sys.mjs");
const found = await FetchConfig.fromISP("example.test", "alice@example.test", new AbortController().signal);
const { AccountConfig } = ChromeUtils.importESModule("resource:///modules/accountcreation/AccountConfig.sys.mjs");
AccountConfig.replaceVariables(found, "Alice", "alice@example.test", "");
const server = s => [s.type, s.hostname, s.port, s.socketType, s.auth, s.username];
return [[found.incoming, ...found.incomingAlternatives].map(server),
        [found.outgoing, ...found.outgoingAlternatives].map(server)];
"""
_PLAIN_TEXT_PASSWORD, _STARTTLS, _SSL = 3, 2, 3  # nsMsgAuthMethod, nsMsgSocketType


async def test_thunderbird_sets_itself_up(tmp_path: Path, tls_files) -> None:
    """Autoconfig, by the code that its account set-up runs: the order, ports, TLS and login that we meant."""
    async with pages(tmp_path, config(), (tls_files.certificate, tls_files.private_key)) as site:
        thunderbird = Thunderbird(tmp_path / "thunderbird", site.port)
        try:
            await asyncio.to_thread(thunderbird.start)
            incoming, outgoing = await asyncio.to_thread(thunderbird.run, _FETCH)
        finally:
            thunderbird.stop()
    login = (_PLAIN_TEXT_PASSWORD, "alice@example.test")
    host = "mx.example.test"
    assert [tuple(server) for server in incoming] == [
        ("imap", host, 993, _SSL, *login), ("imap", host, 143, _STARTTLS, *login),
    ]  # fmt: skip
    assert tuple(outgoing[0]) == ("smtp", host, 465, _SSL, *login)
    # it fills in the login of another choice only when that is taken
    assert [tuple(server) for server in outgoing[1:]] == [
        ("smtp", host, 587, _STARTTLS, _PLAIN_TEXT_PASSWORD, "%EMAILADDRESS%")
    ]

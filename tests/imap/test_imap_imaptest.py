"""What Dovecot's imaptest found here, each as a test of ours (docs/rfc.md says how it was run)."""

from __future__ import annotations

import asyncio
import re

import pytest
from imap_rig import Rig

from pymx.mail.text import decode_quoted_printable
from pymx.proto.imap.envelope import envelope

MESSAGE = b"From: a@example.test\r\nSubject: hello\r\n\r\nText\r\n"


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (b"hello  \r\nbar=\r\n\r\n", b"hello\r\nbar\r\n"),
        (b"foo \t=\t \r\nb\r\n", b"foo \tb\r\n"),
        (b"foo = \t\r\nbar", b"foo bar"),
        (b"foo_bar =20\r\n", b"foo_bar  \r\n"),
        (b"end \t", b"end"),
        (b"a \nb\n", b"a\nb\n"),
    ],
)
def test_quoted_printable_loses_white_space_added_at_line_ends(encoded: bytes, expected: bytes) -> None:
    """RFC 2045 s. 6.7 (3): "any trailing white space on a Quoted-Printable line MUST be deleted"."""
    assert decode_quoted_printable(encoded) == expected


def test_quoted_printable_of_endless_blanks_is_fast() -> None:
    """One look at each octet."""
    assert decode_quoted_printable(b" " * 1_000_000 + b"x") == b" " * 1_000_000 + b"x"


def test_comment_in_an_empty_group_is_nobody() -> None:
    """RFC 3501 s. 7.4.2: groups are two marks with the members between them."""
    found = envelope(b"Cc: group:;, group2: (foo) ;\r\n\r\n")
    assert b'(NIL NIL "group" NIL)(NIL NIL NIL NIL)(NIL NIL "group2" NIL)(NIL NIL NIL NIL))' in found
    assert b"MISSING" not in found


async def test_largest_id_is_taken_before_login(rig: Rig) -> None:
    """RFC 2971 s. 3.3: 30 fields with names of 30 octets and values of 1024."""
    client = await rig.connect()
    fields = b" ".join(b'"%030d" "%b"' % (number, b"v" * 1024) for number in range(30))
    assert await client.ok(b"ID (" + fields + b")")
    await client.close()


async def test_search_for_numbers_that_do_not_exist_finds_nothing(rig: Rig) -> None:
    """Clients that have not heard of an expunge get an answer, not an error."""
    await rig.deliver(MESSAGE)
    client = await rig.select()
    assert (await client.ok("SEARCH RETURN () 1000"))[0].startswith(b"* ESEARCH (TAG")
    assert (await client.ok("SEARCH 1:1000"))[0] == b"* SEARCH 1"
    assert (await client.ok("SEARCH NOT 5"))[0] == b"* SEARCH 1"
    await client.close()


async def test_fetch_and_store_of_expunged_messages_are_no_failures(rig: Rig) -> None:
    """RFC 5530 s. 3, EXPUNGEISSUED: what is there is answered, and OK."""
    for _ in range(3):
        await rig.deliver(MESSAGE)
    one, two = await rig.select(), await rig.select()
    await two.ok("STORE 2 +FLAGS.SILENT (\\Deleted)")
    await two.ok("EXPUNGE")
    lines = await one.ok("FETCH 1:3 (UID BODY.PEEK[TEXT])")
    assert [int(re.findall(rb"UID (\d+)", line)[0]) for line in lines[:2]] == [1, 3]
    assert lines[-1].startswith(b"OK [EXPUNGEISSUED]")
    assert (await one.ok("STORE 1:3 +FLAGS (\\Flagged)"))[-1].startswith(b"OK [EXPUNGEISSUED]")
    await one.close()
    await two.close()


async def test_background_fetches_are_put_off_while_much_runs(rig: Rig) -> None:
    """Apple TN3189: `ID (… "event" …)` may be answered NO [UNAVAILABLE]; everybody else is served."""
    client = await rig.login()
    wake = 'ID ("name" "com.apple.email.maild" "event" "background-fetch")'
    assert (await client.ok(wake))[-1].startswith(b"OK")
    rig.imap.running_commands += rig.imap.imap.background_commands + 1
    assert (await client.ask(wake))[-1].startswith(b"NO [UNAVAILABLE]")
    await client.ok('ID ("name" "Mail")')
    await client.ok("SELECT INBOX")
    rig.imap.running_commands -= rig.imap.imap.background_commands + 1
    await client.ok(wake)
    assert rig.imap.running_commands == 0
    async with asyncio.timeout(10):
        await client.close()


async def test_message_is_recent_in_one_session_only(rig: Rig) -> None:
    """RFC 3501 s. 2.3.2: the first that is told of it, also if another was there before."""
    await rig.deliver(MESSAGE)
    one = await rig.select()
    assert b"\\Recent" in (await one.ok("FETCH 1 FLAGS"))[0]
    await rig.deliver(MESSAGE)
    two = await rig.select()
    assert b"\\Recent" in (await two.ok("FETCH 2 FLAGS"))[0]
    assert b"* 0 RECENT" in await one.ok("NOOP")
    assert b"\\Recent" not in (await one.ok("FETCH 2 FLAGS"))[0]
    await rig.deliver(MESSAGE)
    assert b"* 1 RECENT" in await one.ok("NOOP")
    assert b"\\Recent" in (await one.ok("FETCH 3 FLAGS"))[0]
    await two.ok("NOOP")
    assert b"\\Recent" not in (await two.ok("FETCH 3 FLAGS"))[0]
    await one.close()
    await two.close()

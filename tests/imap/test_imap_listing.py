"""FETCH of what the store has as columns of text goes a way of its own, and says what FETCH of rows says."""

from __future__ import annotations

import random

import pytest
from imap_rig import Client, Rig

MESSAGE = b"From: a@example.test\r\nSubject: hello\r\n\r\nText\r\n"
LONG = [
    "UID FLAGS INTERNALDATE RFC822.SIZE ENVELOPE BODYSTRUCTURE",
    "BODYSTRUCTURE INTERNALDATE FLAGS ENVELOPE ENVELOPE UID",
    "BODYSTRUCTURE",
]
KEYWORDS = [f"$Keyword{n}" for n in range(40)]  # more than Maildir has letters


async def fetched(client: Client, command: str, items: str) -> list[bytes]:
    """The answer, and that the same with another item, which takes rows, is the same without that."""
    plain = await client.ok(f"{command} ({items})")
    rows = [line.replace(b" SAVEDATE NIL", b"") for line in await client.ok(f"{command} ({items} SAVEDATE)")]
    without = [line.partition(b" SAVEDATE ")[0] + b")" if b" SAVEDATE " in line else line for line in rows]
    assert plain == without
    return plain


async def filled(rig: Rig, count: int) -> Client:
    """A session with messages of all flags and keywords, and gaps between their UIDs."""
    chance = random.Random(5)
    client = await rig.select()
    for number in range(count):
        flags = chance.sample(["\\Seen", "\\Answered", "\\Flagged", "\\Draft"], chance.randrange(4))
        head = (
            b"Subject: gr\xfc\xdfe\r\n" if number == 6 else b"Date: Tue, %d Nov 2026 10:00:00 +0000\r\n" % (number + 1)
        )
        await client.append(head + MESSAGE + b"x" * number, flags=" ".join(flags + chance.sample(KEYWORDS, number % 5)))
    await client.ok("UID STORE 3,4,9 +FLAGS.SILENT (\\Deleted)")
    await client.ok("EXPUNGE")
    return client


@pytest.mark.parametrize("items", ["UID FLAGS", "FLAGS", "UID", "RFC822.SIZE FLAGS MODSEQ UID", "FLAGS FLAGS", *LONG])
@pytest.mark.parametrize("messages", ["1:*", "2:5", "1,7,20", "*", "20,3:4"])
async def test_listing_says_what_rows_say(rig: Rig, items: str, messages: str) -> None:
    """RFC 3501 s. 7.4.2."""
    client = await filled(rig, 24)
    await client.ok("ENABLE CONDSTORE")
    plain = await fetched(client, f"FETCH {messages}", items)
    assert len(plain) - 1 == {"1:*": 21, "2:5": 4, "1,7,20": 3, "*": 1, "20,3:4": 3}[messages]
    await fetched(client, f"UID FETCH {messages}", items)
    await client.ok("ENABLE UIDONLY")
    await fetched(client, f"UID FETCH {messages}", items)
    await client.close()


async def test_new_keyword_has_its_name_in_the_next_listing(rig: Rig) -> None:
    """RFC 3501 s. 2.3.2: a keyword's place is the mailbox's, its name is told; nothing of a listing is kept."""
    one, two = await filled(rig, 8), await rig.select()
    await fetched(one, "FETCH 1:*", "FLAGS")
    await two.ok("STORE 2 +FLAGS ($Brandnew)")
    await one.ok("NOOP")
    assert b"$Brandnew" in (await fetched(one, "FETCH 2", "FLAGS"))[0]
    await two.ok("STORE 2 -FLAGS ($Brandnew)")
    await two.ok("STORE 1:* FLAGS ()")
    await one.ok("NOOP")
    plain = await fetched(one, "FETCH 1:*", "FLAGS")
    shown = [line.replace(b"\\Recent", b"") for line in plain[:-1]]
    assert shown == [b"* %d FETCH (FLAGS ())" % number for number in range(1, 7)]
    await one.close()
    await two.close()


async def test_listing_leaves_out_what_another_session_expunged(rig: Rig) -> None:
    """RFC 3501 s. 7.4.1: FETCH may not send EXPUNGE, so numbers stay, and messages that are gone are absent."""
    one, two = await filled(rig, 10), await rig.select()
    before = await one.ok("FETCH 1:* (UID FLAGS)")
    await two.ok("STORE 2,7 +FLAGS.SILENT (\\Deleted)")
    await two.ok("EXPUNGE")
    plain = await fetched(one, "FETCH 1:*", "UID FLAGS")
    assert [line.split()[1] for line in plain[:-1]] == [b"1", b"3", b"4", b"5", b"6"]
    assert plain[-1].startswith(b"OK [EXPUNGEISSUED]")
    assert set(plain[:-1]) < set(before)
    await one.close()
    await two.close()


async def test_recent_messages_are_recent_in_a_listing(rig: Rig) -> None:
    """RFC 3501 s. 2.3.2: \\Recent in one session, for those that came since the last one."""
    await (await filled(rig, 5)).close()
    for _ in range(3):
        await rig.deliver(MESSAGE)
    client = await rig.select()
    plain = await fetched(client, "FETCH 1:*", "FLAGS UID")
    recent = [b"\\Recent" in line for line in plain[:-1]]
    assert recent == [False] * (len(recent) - 3) + [True] * 3
    later = await rig.select()
    assert not any(b"\\Recent" in line for line in await fetched(later, "FETCH 1:*", "FLAGS UID"))
    await client.close()
    await later.close()

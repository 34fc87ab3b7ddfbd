"""QUOTA (RFC 9208)."""

from __future__ import annotations

from imap_rig import Rig

MESSAGE = b"From: a@example.test\r\nSubject: hello\r\n\r\n" + b"x" * 998 + b"\r\n"
_LIMIT = 10 * 1024


async def test_usage_and_limit_are_told_in_units_of_1024_octets(rig: Rig) -> None:
    """RFC 9208 s. 4.2, 5.1; usage is rounded up."""
    rig.accounts.quota_octets = _LIMIT
    client = await rig.login()
    await client.append(MESSAGE)
    assert await client.ok("GETQUOTAROOT inbox") == [
        b'* QUOTAROOT INBOX ""',
        b'* QUOTA "" (STORAGE 2 10)',
        b"OK Getquotaroot completed.",
    ]
    assert await client.ok('GETQUOTA ""') == [b'* QUOTA "" (STORAGE 2 10)', b"OK Getquota completed."]
    assert (await client.ask("GETQUOTA other"))[-1].startswith(b"NO [NONEXISTENT]")
    assert (await client.ask("GETQUOTAROOT Nowhere"))[-1].startswith(b"NO [NONEXISTENT]")
    await client.close()


async def test_messages_are_limited_too(rig: Rig) -> None:
    """RFC 9208 s. 5.2: MESSAGE; only what is limited is listed."""
    rig.accounts.quota_messages = 3
    client = await rig.select()
    await client.append(MESSAGE)
    await client.append(MESSAGE)
    assert await client.ok('GETQUOTA ""') == [b'* QUOTA "" (MESSAGE 2 3)', b"OK Getquota completed."]
    assert (await client.ask("COPY 1:2 Archive"))[-1].startswith(b"NO [OVERQUOTA]")
    await client.ok("COPY 1 Archive")
    assert (await client.ask(b"APPEND INBOX {%d+}\r\n" % len(MESSAGE) + MESSAGE))[-1].startswith(b"NO [OVERQUOTA]")
    await client.ok(b"REPLACE 2 INBOX {%d+}\r\n%b" % (len(MESSAGE), MESSAGE))
    await client.ok("MOVE 1 Archive")
    rig.accounts.quota_octets = _LIMIT
    other = await rig.login()
    assert await other.ok('GETQUOTA ""') == [b'* QUOTA "" (STORAGE 4 10 MESSAGE 3 3)', b"OK Getquota completed."]
    await client.close()
    await other.close()


async def test_setquota_is_refused(rig: Rig) -> None:
    """RFC 9208 s. 4.1.3: limits are the administrator's; QUOTASET (s. 4.1.4) is not offered."""
    client = await rig.login()
    assert (await client.ask('SETQUOTA "" (STORAGE 512 MESSAGE 10)'))[-1].startswith(b"NO [NOPERM]")
    assert (await client.ask('SETQUOTA "" ()'))[-1].startswith(b"NO [NOPERM]")
    assert (await client.ask('SETQUOTA ""'))[-1].startswith(b"BAD")
    (offered, _) = await client.ok("CAPABILITY")
    assert b" QUOTA=RES-STORAGE QUOTA=RES-MESSAGE " in offered
    assert b"QUOTASET" not in offered
    await client.close()


async def test_account_without_a_limit_has_no_quota_root(rig: Rig) -> None:
    """RFC 9208 s. 4.2.2: a mailbox may have none."""
    client = await rig.login()
    assert await client.ok("GETQUOTAROOT INBOX") == [b"* QUOTAROOT INBOX", b"OK Getquotaroot completed."]
    assert (await client.ask('GETQUOTA ""'))[-1].startswith(b"NO")
    await client.close()


async def test_append_and_copy_over_the_limit_are_refused_and_move_is_not(rig: Rig) -> None:
    """RFC 9208 s. 4.3.1: NO [OVERQUOTA]; moving takes no room."""
    rig.accounts.quota_octets = _LIMIT
    client = await rig.select()
    for _ in range(8):
        await client.append(MESSAGE)
    big = b"Subject: x\r\n\r\n" + b"x" * 4096
    assert (await client.ask(b"APPEND INBOX {%d+}\r\n" % len(big) + big))[-1].startswith(b"NO [OVERQUOTA]")
    assert (await client.ask("COPY 1:8 Archive"))[-1].startswith(b"NO [OVERQUOTA]")
    await client.ok("COPY 1 Archive")
    await client.ok("MOVE 1:8 Archive")
    await client.close()


async def test_replacing_a_message_needs_room_for_the_difference_only(rig: Rig) -> None:
    """RFC 8508 s. 3: the old message's octets are free again."""
    rig.accounts.quota_octets = _LIMIT
    client = await rig.select()
    for _ in range(9):
        await client.append(MESSAGE)
    new = MESSAGE.replace(b"hello", b"world")
    await client.ok(b"REPLACE 9 INBOX {%d+}\r\n%b" % (len(new), new))
    big = MESSAGE + b"x" * 1024
    assert (await client.ask(b"REPLACE 9 INBOX {%d+}\r\n%b" % (len(big), big)))[-1].startswith(b"NO [OVERQUOTA]")
    await client.close()


async def test_status_tells_what_expunge_would_free(rig: Rig) -> None:
    """RFC 9208 s. 4.1.4: DELETED and DELETED-STORAGE, in octets."""
    client = await rig.select()
    for _ in range(3):
        await client.append(MESSAGE)
    await client.ok("STORE 1,3 +FLAGS.SILENT (\\Deleted)")
    lines = await client.ok("STATUS INBOX (DELETED DELETED-STORAGE)")
    assert lines[0] == b"* STATUS INBOX (DELETED 2 DELETED-STORAGE %d)" % (2 * len(MESSAGE))
    await client.close()

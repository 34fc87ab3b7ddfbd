"""What clients that people really use send, and what breaks them: one test per habit, named after the client."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

import pytest
from imap_rig import ALICE, Rig, running
from support.tls import TlsFiles
from support.wait import wait_until

from pymx.config.model import Mail
from pymx.ms.deliveries import Delivery
from pymx.ms.store import Store
from pymx.proto.imap.render import render
from pymx.spool import Content

MESSAGE = b"From: a@example.test\r\nTo: b@example.test\r\nSubject: hello\r\n\r\nText\r\n"


def maildir(tmp_path: Path) -> Path:
    return tmp_path / "mail" / ALICE.domain / ALICE.local_part


def rename_on_disk(tmp_path: Path, number: int, flags: str) -> None:
    """What mutt does on a local Maildir."""
    cur = maildir(tmp_path) / "cur"
    name = sorted(os.listdir(cur), key=lambda each: (int(each.split(".")[0]), each))[number - 1]
    os.rename(cur / name, cur / f"{name.partition(':')[0]}:2,{flags}")


def number(name: str, lines: list[bytes]) -> int:
    """The number behind a word in responses."""
    found = re.search(rb"%b (\d+)" % name.encode(), b"\n".join(lines))
    assert found
    return int(found[1])


# Several programs at one mailbox


async def test_silent_store_tells_what_another_client_changed_before(rig: Rig) -> None:
    """RFC 3501 s. 6.4.6: .SILENT is for the client's own change; the flag another one set must not be swallowed."""
    await rig.deliver(MESSAGE)
    phone, desktop = await rig.select(), await rig.select()
    await phone.ok("STORE 1 +FLAGS (\\Flagged)")
    told = b"\n".join(await desktop.ok("STORE 1 +FLAGS.SILENT (\\Seen)") + await desktop.ok("NOOP"))
    assert b"\\Flagged" in told
    await phone.close()
    await desktop.close()


async def test_seen_by_fetch_tells_what_another_client_changed_before(rig: Rig) -> None:
    await rig.deliver(MESSAGE)
    phone, desktop = await rig.select(), await rig.select()
    await phone.ok("STORE 1 +FLAGS (\\Flagged)")
    told = b"\n".join(await desktop.ok("FETCH 1 BODY[]") + await desktop.ok("NOOP"))
    assert b"\\Flagged" in told
    await phone.close()
    await desktop.close()


async def test_store_does_not_swallow_flags_a_local_mutt_set_meanwhile(rig: Rig, tmp_path: Path) -> None:
    """A foreign change found under the lock of our own STORE is told all the same."""
    for _ in range(2):
        await rig.deliver(MESSAGE)
    client = await rig.select()
    rename_on_disk(tmp_path, 2, "F")
    told = b"\n".join(await client.ok("STORE 1 +FLAGS.SILENT (\\Seen)") + await client.ok("NOOP"))
    assert b"* 2 FETCH (FLAGS (\\Flagged" in told
    await client.close()


async def test_idle_is_told_when_the_other_process_could_not_send_its_hint(rig: Rig, tmp_path: Path) -> None:
    """Hints may be lost (a socket queues 10 of them): inotify shows what another process of ours did, too."""
    other = Store(Mail(root=str(tmp_path / "mail")), render=render, runtime_dir=None, hostname="mx.example.test")
    await other.start()
    client = await rig.select()
    try:
        client.send(b"i IDLE\r\n")
        assert await client.line() == b"+ idling"
        await wait_until(lambda: bool(rig.store.watch._of_box))
        await other.deliver([Delivery(ALICE, "INBOX", Content.from_bytes(MESSAGE))])
        async with asyncio.timeout(3):
            assert await client.line() == b"* 1 EXISTS"
    finally:
        await client.close()
        await other.close()


async def test_a_deleted_mailbox_made_anew_is_another_one(rig: Rig) -> None:
    """RFC 3501 s. 2.3.1.1: UIDs of the old one must not reach messages of the new one."""
    phone, desktop = await rig.login(), await rig.login()
    await phone.ok("CREATE Foo")
    await phone.append(MESSAGE, "Foo")
    await phone.ok("SELECT Foo")
    await desktop.ok("DELETE Foo")
    await desktop.ok("CREATE Foo")
    await desktop.append(MESSAGE.replace(b"Text", b"Precious"), "Foo")
    for command in ("FETCH 1 BODY[]", "STORE 1 +FLAGS (\\Deleted)", "COPY 1 Trash", "MOVE 1 Trash"):
        phone.send(f"x UID {command}\r\n".encode())
        line = await phone.line()
        assert line.startswith((b"x NO", b"* BYE")), line
        if line.startswith(b"* BYE"):
            break
    assert (await desktop.ok("STATUS Foo (MESSAGES DELETED)"))[0] == b"* STATUS Foo (MESSAGES 1 DELETED 0)"
    assert (await desktop.ok("STATUS Trash (MESSAGES)"))[0] == b"* STATUS Trash (MESSAGES 0)"
    await phone.close()
    await desktop.close()


@pytest.mark.parametrize("commands", [("DELETE Foo", "CREATE Foo"), ("RENAME Foo Bar",)])
async def test_idle_ends_when_the_mailbox_goes(rig: Rig, commands: tuple[str, ...]) -> None:
    """Nobody waits half an hour for mail in a mailbox that is no more."""
    phone, desktop = await rig.login(), await rig.login()
    await phone.ok("CREATE Foo")
    await phone.ok("SELECT Foo")
    phone.send(b"i IDLE\r\n")
    assert await phone.line() == b"+ idling"
    for command in commands:
        await desktop.ok(command)
    async with asyncio.timeout(3):
        assert (await phone.line()).startswith(b"* BYE")
    await phone.close()
    await desktop.close()


async def test_a_renamed_mailbox_is_watched_by_those_who_open_it(rig: Rig, tmp_path: Path) -> None:
    """Two sessions, two names, one directory: the end of one must not make the other deaf."""
    await rig.store.create(ALICE, "Foo")
    old = await rig.store.open(ALICE, "Foo", read_only=False)
    old.watch(lambda: None)
    await rig.store.rename(ALICE, "Foo", "Bar")
    new = await rig.store.open(ALICE, "Bar", read_only=False)
    told = asyncio.Event()
    new.watch(told.set)
    old.close()
    told.clear()
    (maildir(tmp_path) / ".Bar" / "new" / "1.M1P1.x").write_bytes(b"a: b\n\nc\n")
    async with asyncio.timeout(3):
        await told.wait()
    new.close()


# Prefix and fs


PREFIXED = Mail(separator=".", prefix="INBOX.")


@pytest.mark.parametrize("name", ["INBOX.INBOX", "INBOX.inbox", "inbox.InBox", "INBOX."])
async def test_courier_prefix_does_not_let_inbox_be_deleted_by_another_name(
    tmp_path: Path, tls_files: TlsFiles, name: str
) -> None:
    """INBOX.INBOX is not INBOX (K-9 made such names)."""
    async with running(tmp_path, tls_files, mail=PREFIXED) as rig:
        await rig.deliver(MESSAGE)
        client = await rig.login()
        answer = (await client.ask(f"DELETE {name}"))[-1]
        assert answer.startswith(b"NO"), answer
        assert (await client.ask(f"RENAME {name} INBOX.elsewhere"))[-1].startswith(b"NO")
        assert (await client.ok("STATUS INBOX (MESSAGES)"))[0] == b"* STATUS INBOX (MESSAGES 1)"
        await client.close()


async def test_prefix_and_separator_of_the_old_server_are_kept(tmp_path: Path, tls_files: TlsFiles) -> None:
    """Courier: INBOX. and a dot; what K-9 12.0b4 makes of it stays a name of its own."""
    async with running(tmp_path, tls_files, mail=PREFIXED) as rig:
        client = await rig.login()
        assert b'(("INBOX." "."))' in (await client.ok("NAMESPACE"))[0]
        await client.ok("CREATE INBOX.INBOX.Trash")
        names = {line.split()[-1] for line in (await client.ok('LIST "" *'))[:-1]}
        assert {b"INBOX", b"INBOX.Sent", b"INBOX.INBOX.Trash"} <= names
        assert [line.split()[-1] for line in (await client.ok('LIST "" %'))[:-1]] == [b"INBOX"]
        assert b"INBOX.Sent" in {line.split()[-1] for line in (await client.ok("LIST INBOX. %"))[:-1]}
        assert b"INBOX.Sent" in {line.split()[-1] for line in (await client.ok('LSUB "" "INBOX.%"'))[:-1]}
        assert (await client.ask("CREATE Outside"))[-1].startswith(b"NO [CANNOT]")
        assert (await client.ask("SELECT Sent"))[-1].startswith(b"NO [NONEXISTENT]")
        await client.ok("RENAME INBOX.Sent INBOX.Gone.Deep")
        await client.ok("SELECT inbox.Gone.Deep")
        await client.ok("APPEND INBOX.Gone.Deep {3+}\r\na:b")
        await client.ok("COPY 1 INBOX.INBOX.Trash")
        await client.ok("MOVE 1 INBOX")
        await client.close()


async def test_fs_layout_is_served_like_any_other(tmp_path: Path, tls_files: TlsFiles) -> None:
    """mail_location = maildir:~/:LAYOUT=fs, separator /; dots belong to names there."""
    async with running(tmp_path, tls_files, mail=Mail(layout="fs", separator="/")) as rig:
        client = await rig.login()
        await client.ok("CREATE a/b.c/d")
        lines = (await client.ok('LIST "" "a*"'))[:-1]
        assert [line.split()[-1] for line in lines] == [b"a", b"a/b.c", b"a/b.c/d"]
        assert b"\\Noselect" in lines[0]
        assert b"\\HasChildren" in lines[1]
        await client.ok("SELECT a/b.c/d")
        await client.ok("APPEND a/b.c/d (\\Seen $k) {3+}\r\na:b")
        uidvalidity = (await client.ok("STATUS a/b.c/d (UIDVALIDITY UIDNEXT MESSAGES)"))[0].split(b"(")[1]
        await client.ok("RENAME a/b.c z")
        assert (await client.ok("STATUS z/d (UIDVALIDITY UIDNEXT MESSAGES)"))[0].split(b"(")[1] == uidvalidity
        assert b"$k" in (await client.ok("FETCH 1 FLAGS"))[0]
        assert (await client.ask("SELECT a/b.c/d"))[-1].startswith(b"NO [NONEXISTENT]")
        for name in ("cur", "z/new", "../x", "z/../../y", "/etc", "z//d", ".x", "dovecot-uidlist", "z/d/tmp"):
            assert (await client.ask(f"CREATE {name}"))[-1].startswith(b"NO [CANNOT]"), name
        await client.ok("CREATE INBOX/Sub")
        await client.ok("SELECT inbox/Sub")
        await client.ok("DELETE z/d")
        await client.ok("DELETE INBOX/Sub")
        assert (await client.ok("STATUS INBOX (MESSAGES)"))[0].endswith(b"(MESSAGES 0)")
        await client.close()


# Login and names


async def test_dovecot_like_capabilities_by_state(rig: Rig) -> None:
    """Clients that cache the greeting's list lose nothing; the whole one comes with the OK of LOGIN."""
    client = await rig.connect()
    assert b" IDLE" not in (await client.ask("CAPABILITY"))[0]
    assert b"[CAPABILITY IMAP4rev1" in (await client.ok("LOGIN alice@example.test secret"))[-1]
    assert b" IDLE" in (await client.ok("CAPABILITY"))[0]
    await client.close()


async def test_outlook_auth_login_prompts(rig: Rig) -> None:
    """ "Username:" and "Password:" to the letter."""
    client = await rig.connect()
    client.send(b"1 AUTHENTICATE LOGIN\r\n")
    assert await client.line() == b"+ VXNlcm5hbWU6"
    client.send(b"YWxpY2VAZXhhbXBsZS50ZXN0\r\n")
    assert await client.line() == b"+ UGFzc3dvcmQ6"
    client.send(b"c2VjcmV0\r\n")
    assert (await client.answer("1"))[-1].startswith(b"OK")
    await client.close()


async def test_apple_mail_pipelines_its_beginning(rig: Rig) -> None:
    """AUTHENTICATE with initial response, ID, LIST, SELECT and an illegal CHANGEDSINCE 0, all in one packet."""
    await rig.deliver(MESSAGE)
    client = await rig.connect()
    client.send(
        b"1.1 AUTHENTICATE PLAIN AGFsaWNlQGV4YW1wbGUudGVzdABzZWNyZXQ=\r\n"
        b'1.2 ID ("name" "com.apple.email.maild" "os" "iOS" "os-version" "16.5 (20F66)")\r\n'
        b'1.3 LIST "" "*" RETURN (SPECIAL-USE)\r\n1.4 SELECT INBOX (CONDSTORE)\r\n'
        b"1.5 UID FETCH 1:* (FLAGS UID MODSEQ) (CHANGEDSINCE 0)\r\n1.6 UID SEARCH RETURN (COUNT) UNSEEN\r\n"
    )
    answers = [await client.answer(f"1.{n}") for n in range(1, 7)]
    assert all(answer[-1].startswith(b"OK") for answer in answers), answers
    assert any(b"\\Sent" in line for line in answers[2])
    assert re.fullmatch(rb"\* 1 FETCH \((FLAGS \([^)]*\)|UID 1|MODSEQ \(\d+\)| )+\)", answers[4][0])
    assert answers[5][0] == b'* ESEARCH (TAG "1.6") UID COUNT 1'
    await client.close()


async def test_iphone_finds_special_uses_in_plain_list(rig: Rig) -> None:
    client = await rig.login()
    lines = b"\n".join(await client.ok('LIST "" "*"'))
    for use in (b"Drafts", b"Sent", b"Junk", b"Trash", b"Archive"):
        assert re.search(rb"\\%b\) .* \"?%b" % (use, use), lines)
    assert b"Sent" in b"\n".join(await client.ok('LSUB "" "*"'))
    await client.close()


async def test_thunderbird_bare_ampersand_is_a_name(rig: Rig) -> None:
    """With UTF8=ACCEPT it sends them; others by mistake. Neither ends the session nor becomes another name."""
    client = await rig.login()
    await client.ok('CREATE "R&D"')
    assert (await client.ok('LIST "" "R*"'))[0].endswith(b"R&-D")
    await client.ok("SELECT R&-D")
    assert (await client.ask('SELECT "&AAA-"'))[-1][:2] in (b"NO", b"BA")
    await client.ok("ENABLE UTF8=ACCEPT")
    await client.ok('SELECT "R&D"')
    assert b"R&D" in (await client.ok('LIST "" "R*"'))[0]
    await client.close()


async def test_roundcube_inbox_in_any_case(rig: Rig) -> None:
    client = await rig.login()
    await client.ok("CREATE inbox.Sub")
    assert [line.split()[-1] for line in (await client.ok('LIST "" "inBox.%"'))[:-1]] == [b"INBOX.Sub"]
    await client.ok("SUBSCRIBE Inbox.Sub")
    assert b"INBOX.Sub" in {line.split()[-1] for line in (await client.ok('LSUB "" "*"'))[:-1]}
    assert (await client.ok("STATUS iNbOx (MESSAGES)"))[0].startswith(b"* STATUS INBOX ")
    await client.close()


async def test_nothing_is_sent_that_was_not_enabled(rig: Rig) -> None:
    """Raw UTF-8 outside of literals, VANISHED, ESEARCH only for clients that asked for them."""
    await rig.deliver("Subject: Grüße\r\nFrom: Jürgen <j@example.test>\r\n\r\nx\r\n".encode())
    client = await rig.select()
    await client.ok("CREATE &APw-ber")
    lines = (
        await client.ok("FETCH 1 (ENVELOPE BODYSTRUCTURE)")
        + await client.ok('LIST "" *')
        + await client.ok("SEARCH ALL")
    )
    lines += await client.ok("STORE 1 +FLAGS.SILENT \\Deleted") + await client.ok("EXPUNGE")
    told = b"\n".join(re.sub(rb"\{\d+\}\r\n[^ )]*", b"", line) for line in lines)
    assert told.isascii()
    assert b"VANISHED" not in told
    assert b"ESEARCH" not in told
    assert b"* 1 EXPUNGE" in told
    await client.close()


# Messages


async def test_mbsync_uidnext_and_appenduid_agree(rig: Rig) -> None:
    """An appended message has the UIDNEXT that was told, and APPENDUID says so (mbsync doubles messages else)."""
    client = await rig.select()
    for _ in range(3):
        status = await client.ok("STATUS INBOX (UIDNEXT UIDVALIDITY)")
        uidnext, uidvalidity = number("UIDNEXT", status), number("UIDVALIDITY", status)
        appended = (await client.append(MESSAGE))[-1]
        assert b"[APPENDUID %d %d]" % (uidvalidity, uidnext) in appended
        await client.ok(f"UID STORE {uidnext} +FLAGS.SILENT \\Deleted")
        await client.ok(f"UID EXPUNGE {uidnext}")
    await client.close()


async def test_copy_into_a_folder_that_has_it_succeeds(rig: Rig) -> None:
    """NO [ALREADYEXISTS] sent clients round and round; INTERNALDATE goes along (also with MOVE)."""
    client = await rig.select()
    date = b'"17-Jul-1996 02:44:25 +0000"'
    await client.ok(b"APPEND INBOX (\\Seen $label1) %b {%d+}\r\n" % (date, len(MESSAGE)) + MESSAGE)
    for uid in (1, 2):
        assert re.search(rb"COPYUID \d+ 1 %d\]" % uid, (await client.ok("UID COPY 1 Archive"))[-1])
    assert re.search(rb"COPYUID \d+ 1 3\]", (await client.ok("UID MOVE 1 Archive"))[0])
    await client.ok("SELECT Archive")
    lines = await client.ok("FETCH 1:* (INTERNALDATE FLAGS)")
    assert all(date in line and b"\\Seen" in line and b"$label1" in line for line in lines[:3])
    await client.close()


async def test_thunderbird_and_apple_mail_walk_in_chunks(rig: Rig) -> None:
    """BODY[]<n.m>: cut at the end, the offset said back, the literal as long as it says; also for parts."""
    body = b"".join(b"%06d\r\n" % n for n in range(20_000))
    message = MESSAGE.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" + body
    await rig.deliver(message)
    client = await rig.select()
    for section, whole in ((b"", message), (b"1", body), (b"TEXT", body)):
        got = b""
        while True:
            line = (await client.ok(b"UID FETCH 1 (UID BODY.PEEK[%b]<%d.65536>)" % (section, len(got))))[0]
            found = re.search(rb"BODY\[%b\]<(\d+)> (?:\{(\d+)\}\r\n|\"\")" % section, line)
            assert found, line[:100]
            assert int(found[1]) == len(got)
            if not int(found[2] or 0):
                break
            got += line[found.end() : found.end() + int(found[2])]
        assert got == whole
    await client.close()


async def test_rfc822_and_body_are_the_same(rig: Rig) -> None:
    """Old clients ask for RFC822, RFC822.HEADER, RFC822.TEXT."""
    await rig.deliver(MESSAGE)
    client = await rig.select()
    line = (await client.ok("FETCH 1 (RFC822.SIZE RFC822.HEADER RFC822.TEXT BODY.PEEK[])"))[0]
    assert b"RFC822.SIZE %d" % len(MESSAGE) in line
    assert b"BODY[] {%d}\r\n" % len(MESSAGE) + MESSAGE in line
    assert (await client.ok("FETCH 1 RFC822"))[0].endswith(b"RFC822 {%d}\r\n" % len(MESSAGE) + MESSAGE + b")")
    await client.close()


@pytest.mark.parametrize(
    "body",
    [
        b"Content-Type: multipart/mixed; boundary=x\r\n\r\n",
        b"Content-Type: multipart/mixed\r\n\r\ntext\r\n",
        b'Content-Type: multipart/mixed; boundary=""\r\n\r\n--\r\n\r\n--\r\n',
        b"Content-Type: message/rfc822\r\n\r\n",
        b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\nU3ViamVjdDogeA0KDQp4\r\n",
        b"Content-Type: multipart/report; boundary=x\r\n\r\n--x\r\nContent-Type: message/delivery-status\r\n\r\n"
        b"a: b\r\n\r\n--x\r\nContent-Type: message/rfc822\r\n\r\n--x--\r\n",
        b"Content-Type: text\r\n\r\nx",
        b"Content-Type: ;;;\r\nContent-Transfer-Encoding:\r\nContent-Disposition: ;\r\n\r\nx",
    ],
)
async def test_mailkit_gets_legal_bodystructures_of_broken_mime(rig: Rig, body: bytes) -> None:
    """Balanced, ASCII, never an empty body or multipart without a part (RFC 3501 s. 9: body-type-mpart)."""
    await rig.deliver(b"From: a@example.test\r\n" + body)
    client = await rig.select()
    line = (await client.ok("FETCH 1 (BODYSTRUCTURE BODY)"))[0]
    bare = re.sub(rb'"(?:[^"\\]|\\.)*"', b"s", line)
    assert bare.count(b"(") == bare.count(b")")
    assert bare.isascii()
    assert b"()" not in bare, line
    assert b'BODYSTRUCTURE ("MIXED"' not in line, line
    await client.ok("FETCH 1 (BODY.PEEK[1] BODY.PEEK[1.MIME] BODY.PEEK[2.HEADER] BODY.PEEK[TEXT])")
    await client.close()


async def test_thunderbird_keywords_are_taken(rig: Rig) -> None:
    """Odd characters, and more than Dovecot's 26 letters, across a second session."""
    await rig.deliver(MESSAGE)
    client = await rig.select()
    wanted = [
        "$label1",
        "NonJunk",
        "$Forwarded",
        "$MDNSent",
        "Junk",
        "NotJunk",
        "$Junk",
        "$NotJunk",
        "$Phishing",
        "a]b",
    ]
    wanted += [f"tag{n}" for n in range(25)]
    for word in wanted:
        await client.ok(f"UID STORE 1 +FLAGS ({word})")
    other = await rig.select()
    line = (await other.ok("FETCH 1 FLAGS"))[0]
    assert set(wanted) <= set(line.decode().partition("FLAGS (")[2].rstrip(")").split())
    assert (await other.ok("UID SEARCH KEYWORD tag24 UNKEYWORD nothere"))[0] == b"* SEARCH 1"
    await other.close()
    await client.close()


async def test_pipelined_store_and_expunge_keep_their_order(rig: Rig) -> None:
    """mutt and mbsync send them without waiting."""
    for _ in range(4):
        await rig.deliver(MESSAGE)
    client = await rig.select()
    client.send(
        b"a STORE 2 +FLAGS.SILENT (\\Deleted)\r\nb STORE 3 +FLAGS (\\Seen)\r\nc EXPUNGE\r\nd FETCH 2 UID\r\n"
        b"e STORE 1 +FLAGS.SILENT (\\Deleted)\r\nf EXPUNGE\r\ng FETCH 1:* UID\r\n"
    )
    answers = {tag: await client.answer(tag) for tag in "abcdefg"}
    assert answers["c"][:-1] == [b"* 2 EXPUNGE"]
    assert answers["d"][0] == b"* 2 FETCH (UID 3)"
    assert answers["f"][:-1] == [b"* 1 EXPUNGE"]
    assert answers["g"][:-1] == [b"* 1 FETCH (UID 3)", b"* 2 FETCH (UID 4)"]
    await client.close()


async def test_condstore_highestmodseq_advances_with_everything(rig: Rig) -> None:
    """Delivery, flags and expunge; a frozen one made clients miss changes."""
    client = await rig.login()

    async def highest() -> int:
        return number("HIGHESTMODSEQ", await client.ok("STATUS INBOX (HIGHESTMODSEQ)"))

    seen = [await highest()]
    await rig.deliver(MESSAGE)
    seen.append(await highest())
    other = await rig.select()
    for command in ("STORE 1 +FLAGS \\Deleted", "EXPUNGE"):
        await other.ok(command)
        seen.append(await highest())
    assert seen == sorted(set(seen))
    await other.close()
    await client.close()


async def test_nextcloud_mail_is_told_no_more_vanished_than_vanished(rig: Rig) -> None:
    """QRESYNC: expunging UID 1 and the last one, then all of them."""
    for _ in range(4):
        await rig.deliver(MESSAGE)
    client = await rig.login()
    await client.ok("ENABLE QRESYNC")
    told = await client.ok("SELECT INBOX")
    uidvalidity, modseq = number("UIDVALIDITY", told), number("HIGHESTMODSEQ", told)
    other = await rig.select()
    for command, gone in (("STORE 1,4 +FLAGS \\Deleted", b"1,4"), ("STORE 1:* +FLAGS \\Deleted", b"1:4")):
        await other.ok(command)
        await other.ok("EXPUNGE")
        lines = await client.ok(f"SELECT INBOX (QRESYNC ({uidvalidity} {modseq}))")
        assert [line for line in lines if b"VANISHED" in line] == [b"* VANISHED (EARLIER) " + gone]
    await other.close()
    await client.close()


async def test_append_takes_what_clients_send(rig: Rig) -> None:
    """Bare LF, bare CR, 8-bit headers, no header, no end of line: CRLF on the wire, and the size is the wire's."""
    client = await rig.select()
    for message in (
        b"Subject: \xfc\n\na\nb",
        b"a\r\n\r\nb\rc\n",
        b"\r\n",
        b"\n",
        b"x",
        b"a:b\r\n\r\n" + b"y" * 70_000 + b"\n",
    ):
        await client.append(message)
        line = (await client.ok("FETCH * (RFC822.SIZE BODY.PEEK[])"))[0]
        wire = re.sub(rb"(?<!\r)\n", b"\r\n", message)
        assert b"RFC822.SIZE %d BODY[] {%d}\r\n%b)" % (len(wire), len(wire), wire) in line
    await client.close()


async def test_k9_fetches_the_beginning_and_the_structure(rig: Rig) -> None:
    await rig.deliver(MESSAGE)
    client = await rig.select()
    line = (
        await client.ok(
            "UID FETCH 1 (UID FLAGS INTERNALDATE RFC822.SIZE "
            "BODY.PEEK[HEADER.FIELDS (date subject from content-type to cc reply-to message-id references)])"
        )
    )[0]
    assert b"Subject: hello\r\n" in line
    assert (await client.ok("UID FETCH 1 (UID BODYSTRUCTURE BODY.PEEK[]<0.32768>)"))[0].endswith(MESSAGE + b")")
    assert (await client.ok("UID SEARCH 1:* NOT DELETED"))[0] == b"* SEARCH 1"
    await client.close()


async def test_status_of_the_selected_mailbox_is_right(rig: Rig) -> None:
    """Many ask for it each minute although they should not (RFC 3501 s. 6.3.10)."""
    client = await rig.select()
    for count in (1, 2):
        await rig.deliver(MESSAGE)
        assert (await client.ok("STATUS INBOX (MESSAGES UNSEEN)"))[0] == b"* STATUS INBOX (MESSAGES %d UNSEEN %d)" % (
            count,
            count,
        )
    await client.close()


async def test_empty_mailbox_takes_the_usual_questions(rig: Rig) -> None:
    """FETCH 1:* and the like in an empty mailbox are no errors: Outlook and Thunderbird ask without looking."""
    client = await rig.select()
    for command in ("FETCH 1:* (FLAGS)", "SEARCH ALL", "STORE 1:* +FLAGS \\Seen", "COPY 1:* Trash", "MOVE 1:* Trash"):
        await client.ok(command)
        await client.ok(f"UID {command}")
    for command in ("EXPUNGE", "UID EXPUNGE 1:*", "CHECK", "SEARCH 1:* UNSEEN"):
        await client.ok(command)
    await client.close()


async def test_many_connections_of_one_address_are_in_order(rig: Rig) -> None:
    """Thunderbird has five per account, iOS more, behind one router."""
    clients = [await rig.select() for _ in range(20)]
    for client in clients:
        client.send(b"i IDLE\r\n")
        assert await client.line() == b"+ idling"
    await rig.deliver(MESSAGE)
    for client in clients:
        assert await client.line() == b"* 1 EXISTS"
        await client.close()


@pytest.mark.parametrize("items", ["BODY.PEEK[1]", "BODY.PEEK[HEADER]"])
async def test_one_slow_message_does_not_stop_the_others(rig: Rig, items: str) -> None:
    """Many lines that begin like a boundary, or a header without an end: 12 MB take long, but not of the loop."""
    head = b"Content-Type: multipart/mixed; boundary=xyz\r\n"
    await rig.deliver(head + (b"\r\n" + b"--xy\r\n" * 2_000_000 if "1" in items else b"x: --xy\r\n" * 1_200_000))
    client = await rig.select()
    longest = 0.0
    loop = asyncio.get_running_loop()

    async def watch() -> None:
        nonlocal longest
        while True:
            before = loop.time()
            await asyncio.sleep(0)
            longest = max(longest, loop.time() - before)

    watcher = asyncio.create_task(watch())
    await client.ok(f"FETCH 1 ({items})")
    watcher.cancel()
    assert longest < 0.3
    await client.close()

"""Nonsense on a live session: every command is answered, nothing inside breaks, and the session goes on."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from imap_rig import running
from support.tls import TlsFiles

from pymx.config.model import Imap

MESSAGE = (
    b"From: a@example.test\r\nSubject: hello\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
    b"--b\r\n\r\nText\r\n--b\r\nContent-Type: message/rfc822\r\n\r\nSubject: inner\r\n\r\nx\r\n--b--\r\n"
)
NAMES = (
    b"NOOP|CHECK|SELECT|EXAMINE|CREATE|DELETE|RENAME|SUBSCRIBE|UNSUBSCRIBE|LIST|LSUB|STATUS|CLOSE|UNSELECT|EXPUNGE|SEARCH"
    b"|FETCH|STORE|COPY|MOVE|UID FETCH|UID STORE|UID COPY|UID MOVE|UID SEARCH|UID EXPUNGE|NAMESPACE|ID|ENABLE"
    b"|CAPABILITY|APPEND|LOGIN|AUTHENTICATE PLAIN|STARTTLS|XLIST|GETQUOTAROOT INBOX|GETQUOTA"
    b"|REPLACE|UID REPLACE|SORT|UID SORT|THREAD|UID THREAD|CREATE x"
).split(b"|")
WORDS = (
    b'INBOX|Trash|a.b|"a b"|""|*|%|1|2:*|*|1:3|(FLAGS)|(UID BODY[])|BODY[1.MIME]|BODY[2.HEADER]|BODY[2.1]<0.3>|FULL|ALL'
    b"|(ENVELOPE BODYSTRUCTURE BODY)|BODY.PEEK[HEADER.FIELDS (From)]|+FLAGS|-FLAGS.SILENT|(\\Seen $x)|FLAGS|\\Deleted"
    b"|UNSEEN|OR|NOT|TEXT hello|FROM a|(|)|RETURN (COUNT)|RETURN (MIN MAX)|(MESSAGES UNSEEN)|(SIZE)|(CONDSTORE)"
    b"|CONDSTORE|(CHANGEDSINCE 1)|(UNCHANGEDSINCE 1)|MODSEQ 1|CHARSET UTF-8|\xc3\xa4|NIL|{3+}\r\nabc|inbox|&AOQ-"
    b"|$|(PARTIAL 1:2)|(PARTIAL -1:-2 CHANGEDSINCE 1 VANISHED)|RETURN (SAVE)|RETURN (SAVE PARTIAL 1:1)"
    b"|YOUNGER 5|OLDER 5|EMAILID M1|THREADID T1|SAVEDON 1-Jan-2020|(PREVIEW)|PREVIEW (LAZY)|(EMAILID THREADID SAVEDATE)"
    b"|BINARY[]|BINARY[1]|(BINARY.SIZE[2] BINARY.PEEK[2.1]<0.9>)|(QRESYNC (1 1))|(QRESYNC (1 1 1:3 (1 1)))|QRESYNC"
    b"|(MAILBOXID DELETED DELETED-STORAGE)|(USE (\\Junk))|~{3+}\r\nabc|UTF8 (~{3+}\r\nabc)|(DATE)|REFERENCES|UTF-8"
    b"|UTF8=ACCEPT"
).split(b"|")


@pytest.mark.parametrize("seed", range(3))
async def test_nonsense_is_answered_and_breaks_nothing(tmp_path: Path, tls_files: TlsFiles, seed: int) -> None:
    """No [SERVERBUG], no lost tag, no end of the session."""
    chance = random.Random(seed)
    async with running(tmp_path, tls_files, imap=Imap(max_errors=100_000)) as rig:
        await rig.deliver(MESSAGE)
        client = await rig.select()
        for _ in range(400):
            if chance.random() < 0.2:
                await client.ask("SELECT INBOX")
                await client.append(MESSAGE)
            words = [chance.choice(NAMES), *(chance.choice(WORDS) for _ in range(chance.randint(0, 5)))]
            lines = await client.ask(b" ".join(words))
            assert lines[-1].split()[0] in (b"OK", b"NO", b"BAD"), (words, lines)
            assert b"SERVERBUG" not in lines[-1], (words, lines)
        await client.close()

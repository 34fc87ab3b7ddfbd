"""SORT and THREAD give what Dovecot gives on the same Maildir."""

from __future__ import annotations

import email.utils
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from ms_support import OWNER, maildir
from support.dovecot import Dovecot

from pymx.config.model import Mail
from pymx.ms.store import Append, Store
from pymx.proto.imap.commands.thread import thread_list
from pymx.proto.imap.render import render
from pymx.spool import Content

ORDERS = ["ARRIVAL", "CC", "DATE", "FROM", "SIZE", "SUBJECT", "TO", "REVERSE DATE", "REVERSE SUBJECT DATE"]
ORDERS += ["SUBJECT REVERSE DATE", "FROM SUBJECT", "DISPLAYFROM", "DISPLAYTO", "REVERSE DISPLAYFROM SIZE"]
SUBJECTS = ["Hello", "Re: Hello", "[list] hello", "Fwd: HELLO (fwd)", "world", "re: World", "[fwd: world]", "", "Re:"]
SUBJECTS += ["[a][b]", "Re: [x] Hello", "=?utf-8?q?=C3=84pfel?=", "apfel", "Zebra", "_under", "ärger", "straße"]
SUBJECTS += ["STRASSE", "hello  there", "hello\n\tthere", "Re[2]: hello", "hello (fwd) (FWD) "]
PEOPLE = ["Ann <ann@x.test>", "bob@x.test", "=?utf-8?q?J=C3=B6rg?= <joerg@x.test>", '"Zed, A" <zed@x.test>']
PEOPLE += ["group: a@b.c, d@e.f;", "empty:;", "<only@x.test>", "ANN <ANN@y.test>", "nohost", "(c) c@x.test"]
PEOPLE += ["Ünal <u@x.test>", "_a@x.test"]


def mail(count: int, seed: int) -> Iterator[tuple[int, bytes]]:
    """(INTERNALDATE, message): answers with right, wrong, missing and looping references, ids twice, odd dates."""
    chance = random.Random(seed)
    moments = chance.sample(range(1_577_000_000, 1_579_000_000), 2 * count)
    ids: list[str] = []
    for number in range(count):
        own = f"<{number}@x.test>"
        if chance.random() < 0.05 and ids:
            own = chance.choice(ids)
        head = []
        for name, likely in (("From", 0.95), ("To", 0.95), ("Cc", 0.4)):
            if chance.random() < likely:
                head.append(f"{name}: " + ", ".join(chance.sample(PEOPLE, chance.choice([1, 1, 2]))))
        if chance.random() < 0.95:
            head.append("Subject: " + chance.choice(SUBJECTS))
        if chance.random() < 0.92:
            zone = chance.choice(["+0000", "-0500", "+0200"])
            head.append("Date: " + email.utils.formatdate(moments.pop()).replace("-0000", zone))
        elif chance.random() < 0.5:
            head.append("Date: rubbish")
        if chance.random() < 0.95:
            head.append("Message-ID: " + own)
        references = chance.sample(ids, min(len(ids), chance.choice([0, 0, 1, 2, 3])))
        if chance.random() < 0.2:
            references.append(chance.choice([f"<missing{number % 5}@x.test>", f"<{chance.randrange(count)}@x.test>"]))
        chance.shuffle(references)
        if references and chance.random() < 0.7:
            head.append("References: " + " ".join(references))
        elif references:
            head.append("In-Reply-To: " + references[0] + chance.choice(["", " <x@y>", " (from bob)"]))
        ids.append(own)
        yield moments.pop(), ("\r\n".join(head).replace("\n\t", "\r\n\t") + "\r\n\r\n" + "x" * number + "\r\n").encode()


def order(text: str) -> list[tuple[str, bool]]:
    return [(name, bool(reverse)) for reverse, name in re.findall(r"(REVERSE )?(\w+)", text)]


Tree = tuple[int, tuple["Tree", ...]]


def trees(text: str) -> list[Tree]:
    """A THREAD response as trees, siblings in the order of their numbers (0: what is not there)."""
    position = 0

    def members() -> tuple[Tree, ...]:
        nonlocal position
        if text[position] == "(":
            found = []
            while text[position : position + 1] == "(":
                position += 1
                found += members()
                position += 1
            return tuple(sorted(found))
        number = re.compile(r"\d+").match(text, position)
        assert number
        position = number.end()
        if text[position] != " ":
            return ((int(number[0]), ()),)
        position += 1
        return ((int(number[0]), members()),)

    found = []
    while position < len(text):
        position += 1
        below = members()
        found.append(below[0] if len(below) == 1 else (0, below))
        position += 1
    return found


@pytest.mark.parametrize("seed", range(4))
async def test_sort_and_thread_are_dovecots(seed: int, tmp_path: Path, dovecot: Dovecot) -> None:
    """RFC 5256 s. 3, RFC 5957. Of merged threads Dovecot does not sort the siblings anew (step 6), so for REFERENCES
    their order is left out of the comparison."""
    store = Store(Mail(root=str(tmp_path / "mail")), render=render, runtime_dir=None, hostname="mx.test")
    await store.start()
    items = [Append(Content.from_bytes(message), 1, (), date) for date, message in mail(80, seed)]
    await store.append(OWNER, "INBOX", items)
    mailbox = await store.open(OWNER, "INBOX", read_only=True)
    with mailbox._box.home.index.write() as db:
        db.execute("DELETE FROM keys WHERE id % 2 = 0")  # half of them as from elsewhere
    with dovecot.session(maildir(tmp_path)) as client:
        for text in ORDERS:
            theirs = client.uid("SORT", f"({text})", "UTF-8", "ALL")[1][0]
            expected = [int(uid) for uid in theirs.split()]
            assert await mailbox.sort(mailbox.uids, order(text)) == expected, text
            for part in (mailbox.uids[::2], mailbox.uids[3::17]):
                assert await mailbox.sort(part, order(text)) == [uid for uid in expected if uid in part], text
        for algorithm in ("ORDEREDSUBJECT", "REFS", "REFERENCES"):
            said = client.uid("THREAD", algorithm, "UTF-8", "ALL")[1][0].decode()
            ours = thread_list(await mailbox.threads(mailbox.uids, algorithm), int).decode()
            if algorithm == "REFERENCES":
                assert trees(ours) == trees(said)
            else:
                assert ours == said, algorithm
    mailbox.close()
    await store.close()

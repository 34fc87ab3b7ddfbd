"""Pictures of an account in use (pymx.ms.snapshot): whatever happens meanwhile, no message and no UID is lost."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.dovecot import Dovecot

from pymx.ms import uidlist
from pymx.ms.dovecotplace import Place
from pymx.ms.layout import INBOX, Layout, Levels
from pymx.ms.leap import LEAP, leap
from pymx.ms.snapshot import _Mailbox, _Picture

WORK = ("Work",)
ARCHIVE = ("Archive",)


class Account:
    """A Maildir++ with a uidlist each, changed by the plain file operations of a mail server."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for levels in (INBOX, WORK, ARCHIVE):
            for part in ("cur", "new", "tmp"):
                (self.path(levels) / part).mkdir(parents=True)
            (self.path(levels) / "dovecot-uidlist").write_text(f"3 V17 N1 G{'ab' * 16}\n")
        (root / "subscriptions").write_text("V\t2\n\nWork\n")
        (root / "pymx.index").write_text("a cache")
        (root / "sieve").mkdir()
        (root / "sieve" / "main.sieve").write_text("keep;")
        (root / ".dovecot.sieve").symlink_to("sieve/main.sieve")

    def path(self, levels: Levels) -> Path:
        return Path(os.fsdecode(Layout("maildir++", ".").path(os.fsencode(self.root), levels)))

    def line(self, levels: Levels, uid: int, base: str) -> None:
        with (self.path(levels) / "dovecot-uidlist").open("a") as out:
            out.write(f"{uid} :{base}\n")

    def deliver(self, levels: Levels, uid: int, base: str, part: str = "cur", flags: str = ":2,") -> None:
        self.line(levels, uid, base)
        (self.path(levels) / part / (base + (flags if part == "cur" else ""))).write_text(f"Subject: {base}\n\n")

    def find(self, levels: Levels, base: str) -> Path:
        return next(p for part in ("cur", "new") for p in (self.path(levels) / part).glob(f"{base}*"))

    def expunge(self, levels: Levels, base: str) -> None:
        self.find(levels, base).unlink()

    def flag(self, levels: Levels, base: str, flags: str) -> None:
        path = self.find(levels, base)
        path.rename(self.path(levels) / "cur" / f"{base}:2,{flags}")

    def move(self, source: Levels, base: str, target: Levels, uid: int, new: str) -> None:
        """RFC 6851, as the store does it: line, link, then the source goes."""
        self.line(target, uid, new)
        os.link(self.find(source, base), self.path(target) / "cur" / f"{new}:2,")
        self.expunge(source, base)

    def forget_line(self, levels: Levels, base: str) -> None:
        """A rewrite of the uidlist drops the lines of expunged messages."""
        path = self.path(levels) / "dovecot-uidlist"
        kept = [x for x in path.read_text().splitlines(keepends=True) if not x.endswith(f":{base}\n")]
        path.write_text("".join(kept))

    def messages(self, levels: Levels) -> dict[str, str]:
        """Base → name."""
        parts = [self.path(levels) / part for part in ("cur", "new")]
        return {p.name.partition(":")[0]: p.name for part in parts if part.is_dir() for p in part.iterdir()}

    def uids(self, levels: Levels) -> dict[str, int]:
        listed = uidlist.parse((self.path(levels) / "dovecot-uidlist").read_bytes())
        assert listed.clean
        return {base.decode(): uid for uid, _, base in listed.records}


class Interrupted(_Picture):
    """Something happens after the first links of a mailbox, before its locks are taken; or before it is begun."""

    def __init__(
        self, *arguments: object, linked: dict[Levels, Callable[[], None]], begun: dict[Levels, Callable]
    ) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]  # those of _Picture
        self.linked = linked
        self.begun = begun

    def _first(self, levels: Levels) -> None:
        self.begun.pop(levels, lambda: None)()
        super()._first(levels)

    def _link(self, box: _Mailbox, names: dict[bytes, tuple[bytes, bytes]]) -> bool:
        complete = super()._link(box, names)
        self.linked.pop(box.levels, lambda: None)()
        return complete


@pytest.fixture
def account(tmp_path: Path) -> Account:
    made = Account(tmp_path / "live")
    for n in range(1, 6):
        made.deliver(INBOX, n, f"in{n}")
        made.deliver(WORK, n, f"work{n}", part="new")
    return made


def picture(
    account: Account, *, linked: dict[Levels, Callable[[], None]] | None = None,
    begun: dict[Levels, Callable[[], None]] | None = None,
) -> Account:  # fmt: skip
    target = account.root.parent / "picture"
    taken = Interrupted(
        Place(os.fsencode(account.root)), Place(os.fsencode(target)), Layout("maildir++", "."), shutil.copy2,
        linked=linked or {}, begun=begun or {},
    )  # fmt: skip
    taken.take()
    out = object.__new__(Account)
    out.root = target
    return out


def sound(taken: Account) -> None:
    """Every file has its line, and nothing is set aside any more."""
    for levels in (INBOX, WORK, ARCHIVE):
        assert set(taken.messages(levels)) <= set(taken.uids(levels))
    assert not list(taken.path(INBOX).glob("tmp/*"))


def test_quiet_account_is_the_same_in_the_picture(account: Account) -> None:
    taken = picture(account)
    for levels in (INBOX, WORK, ARCHIVE):
        assert taken.messages(levels) == account.messages(levels)
        assert taken.uids(levels) == account.uids(levels)
    assert taken.find(INBOX, "in1").stat().st_ino == account.find(INBOX, "in1").stat().st_ino
    assert (taken.root / ".dovecot.sieve").readlink() == Path("sieve/main.sieve")
    assert (taken.root / "sieve" / "main.sieve").read_text() == "keep;"
    assert (taken.root / "subscriptions").exists()
    assert not (taken.root / "pymx.index").exists()
    assert not list(taken.root.rglob("*.lock"))


def test_flags_keywords_and_arrivals_are_those_of_one_moment(account: Account) -> None:
    """Letters mean what the dovecot-keywords beside them says."""

    def meanwhile() -> None:
        account.flag(INBOX, "in2", "Sa")
        account.deliver(INBOX, 6, "in6")
        (account.path(INBOX) / "dovecot-keywords").write_text("0 $Work\n")

    taken = picture(account, linked={INBOX: meanwhile})
    sound(taken)
    assert taken.messages(INBOX) == account.messages(INBOX)
    assert taken.messages(INBOX)["in2"] == "in2:2,Sa"
    assert (taken.path(INBOX) / "dovecot-keywords").read_text() == "0 $Work\n"


def test_seen_meanwhile_goes_from_new_to_cur(account: Account) -> None:
    taken = picture(account, linked={WORK: lambda: account.flag(WORK, "work3", "S")})
    sound(taken)
    assert taken.messages(WORK) == account.messages(WORK)


def test_message_expunged_meanwhile_keeps_its_uid_if_it_is_there(account: Account) -> None:
    """Also when the uidlist is rewritten without it: it must not come back as a new message."""

    def meanwhile() -> None:
        account.expunge(INBOX, "in3")
        account.forget_line(INBOX, "in3")

    taken = picture(account, linked={INBOX: meanwhile})
    sound(taken)
    assert taken.uids(INBOX)["in3"] == 3


@pytest.mark.parametrize("source", [INBOX, WORK, ARCHIVE])
@pytest.mark.parametrize("target", [INBOX, WORK, ARCHIVE])
@pytest.mark.parametrize("when", ["begun", "linked"])
@pytest.mark.parametrize("at", [INBOX, WORK, ARCHIVE])
def test_message_moved_meanwhile_is_somewhere(
    account: Account, source: Levels, target: Levels, when: str, at: Levels
) -> None:
    """From a mailbox that was not looked at yet into one that was, too."""
    account.deliver(source, 9, "wanderer")
    taken = picture(account, **{when: {at: lambda: account.move(source, "wanderer", target, 10, "wanderer-moved")}})
    sound(taken)
    copies = [b for levels in (INBOX, WORK, ARCHIVE) for b in taken.messages(levels) if b.startswith("wanderer")]
    assert len(copies) == 1
    assert taken.uids(target)["wanderer-moved"] == 10


def test_deleted_mailbox_and_lines_of_later_messages(account: Account) -> None:
    """The UID of a message that came too late stays burnt."""
    taken = picture(account, begun={WORK: lambda: account.deliver(INBOX, 7, "late")})
    sound(taken)
    assert taken.uids(INBOX)["late"] == 7
    assert "late" in taken.messages(INBOX)


def test_picture_is_a_copy_where_links_cannot_be(account: Account, tmp_path: Path) -> None:
    """Another file system: /dev/shm, where there is one."""
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("NO OTHER FILE SYSTEM at /dev/shm")
    target = shm / f"pymx-{os.getpid()}-{tmp_path.name}"
    try:
        _Picture(
            Place(os.fsencode(account.root)), Place(os.fsencode(target)), Layout("maildir++", "."), shutil.copy2
        ).take()
        live = account.find(INBOX, "in1")
        copy = target / "cur" / live.name
        assert copy.read_text() == live.read_text()
        assert copy.stat().st_mtime_ns == live.stat().st_mtime_ns
        assert copy.stat().st_nlink == 1
    finally:
        shutil.rmtree(target, ignore_errors=True)


def test_leap_keeps_the_uids_and_gives_none_twice(account: Account) -> None:
    """UIDs that were told after the backup are not given to others, nor is a UIDVALIDITY (RFC 9051 s. 2.3.1.1)."""
    (account.root / "dovecot-uidvalidity").write_text("00000011")
    (account.root / "dovecot-uidvalidity.00000011").touch()
    before = account.uids(INBOX)
    leap(Place(os.fsencode(account.root)), Layout("maildir++", "."))
    listed = uidlist.parse((account.root / "dovecot-uidlist").read_bytes())
    assert account.uids(INBOX) == before
    assert listed.header.uidvalidity == 17
    assert listed.next_uid == 6 + LEAP
    markers = [p.name for p in account.root.glob("dovecot-uidvalidity.*")]
    assert markers == [f"dovecot-uidvalidity.{(account.root / 'dovecot-uidvalidity').read_text()}"]
    assert int(markers[0].rpartition(".")[2], 16) > 1_700_000_000


def test_dovecot_takes_a_leap_as_it_is(dovecot: Dovecot, tmp_path: Path) -> None:
    """Same UIDs, the next one far ahead, nothing to complain about, and lines that are appended later keep theirs."""
    maildir = tmp_path / "example.test" / "alice"
    with dovecot.session(maildir) as imap:
        for n in range(3):
            imap.append("INBOX", None, None, f"Subject: {n}\r\n\r\n".encode())
        imap.noop()
        validity = imap.response("UIDVALIDITY")[1]
    for cache in maildir.glob("dovecot.*index*"):
        cache.unlink()  # no part of a backup
    leap(Place(os.fsencode(maildir)), Layout("maildir++", "."))
    expected = [b"1 2 3"]
    for number in range(2):
        with dovecot.session(maildir) as imap:
            assert imap.response("UIDVALIDITY")[1] == validity
            assert imap.uid("SEARCH", "ALL")[1] == expected
            imap.append("INBOX", None, None, b"Subject: later\r\n\r\n")
            imap.noop()
            expected = [expected[0] + b" %d" % (4 + LEAP + number)]
            assert imap.uid("SEARCH", "ALL")[1] == expected
    assert dovecot.errors() == []

"""Dovecot's CONTROL= directory: uidlists, keywords, subscriptions and UIDVALIDITY apart from the mail."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.dovecot import Dovecot

from pymx.config.model import Mail
from pymx.mail import mutf7
from pymx.mail.flags import SEEN
from pymx.ms.audit import Audit
from pymx.ms.deliveries import Delivery
from pymx.ms.dovecotplace import Location, Place, expand
from pymx.ms.layout import Layout
from pymx.ms.mend import Mending, index_path, open_account
from pymx.ms.owner import Owner
from pymx.ms.store import Append, Store
from pymx.spool import Content

OWNER = Owner("example.test", "alice")


@pytest.fixture(params=["maildir++", "fs"])
def mail(request: pytest.FixtureRequest, tmp_path: Path) -> Mail:
    separator = "/" if request.param == "fs" else "."
    return Mail(
        root=str(tmp_path / "mail"),
        layout=request.param,
        separator=separator,
        control_dir=f"{tmp_path}/control/%d/%n",
    )


@pytest.fixture
def maildir(mail: Mail) -> Path:
    path = Path(mail.root) / "example.test" / "alice"
    path.mkdir(parents=True, mode=0o700)
    return path


@pytest.fixture
def control(tmp_path: Path) -> Path:
    return tmp_path / "control" / "example.test" / "alice"


@pytest.fixture
def config(mail: Mail, maildir: Path, control: Path) -> str:
    control.mkdir(parents=True, mode=0o700)
    return f"mail_location = maildir:{maildir}:LAYOUT={mail.layout}:CONTROL={control}:INDEX={control}.index\n"


@pytest.fixture
async def store(mail: Mail) -> AsyncIterator[Store]:
    store = Store(mail, render=lambda _: (b"E", b"B", None), runtime_dir=None, hostname="mx.test")  # type: ignore[arg-type,return-value]
    await store.start()
    yield store
    await store.close()


def content(subject: str) -> Content:
    return Content.from_bytes(f"Subject: {subject}\r\n\r\nhello\r\n".encode())


def shown_by_dovecot(dovecot: Dovecot, maildir: Path, config: str, name: str) -> dict[int, set[str]]:
    out = {}
    with dovecot.session(maildir, f'"{mutf7.encode(name)}"', extra=config) as imap:
        for line in imap.uid("FETCH", "1:*", "(UID FLAGS)")[1]:
            if line is None:
                continue
            words = line.decode().replace("(", " ").replace(")", " ").split()
            uid = words[words.index("UID") + 1]
            out[int(uid)] = set(words[words.index("FLAGS") + 1 :]) - {"UID", uid, "\\Recent"}
    return out


async def shown(store: Store, name: str) -> dict[int, set[str]]:
    mailbox = await store.open(OWNER, name, read_only=True)
    out = {}
    async for batch in mailbox.rows(mailbox.uids):
        for uid, _, flags, bits, *_ in batch:
            out[uid] = {k for n, k in enumerate(mailbox.keywords) if bits >> n & 1} | (
                {"\\Seen"} if flags & SEEN else set()
            )
    mailbox.close()
    return out


async def test_both_work_on_one_mailbox_with_control_files_apart(
    store: Store, mail: Mail, dovecot: Dovecot, maildir: Path, control: Path, config: str
) -> None:
    """Dovecot's UIDs and keywords are found; new, renamed and deleted folders are the same for both."""
    lists = f"Lists{mail.separator}Ärger"
    with dovecot.session(maildir, extra=config) as imap:
        imap.create(f'"{mutf7.encode("Lists")}{mail.separator}{mutf7.encode("Ärger")}"')
        imap.subscribe(f'"{mutf7.encode("Lists")}{mail.separator}{mutf7.encode("Ärger")}"')
        for number in range(4):
            imap.append("INBOX", "(\\Seen $Old)" if number % 2 else "", "", f"Subject: {number}\r\n\r\nx\r\n".encode())
        imap.noop()
        imap.uid("STORE", "1", "+FLAGS", "(\\Deleted)")
        imap.expunge()
    before = shown_by_dovecot(dovecot, maildir, config, "INBOX")
    assert await shown(store, "INBOX") == before == {2: {"\\Seen", "$Old"}, 3: set(), 4: {"\\Seen", "$Old"}}
    folders = {folder.name: folder.subscribed for folder in await store.folders(OWNER) if folder.exists}
    assert folders == {"INBOX": False, lists: True}

    await store.deliver([Delivery(OWNER, "INBOX", content("five"))])
    await store.append(OWNER, lists, [Append(content("six"), SEEN, ("$New",), None)])
    await store.create(OWNER, "Made")
    await store.subscribe(OWNER, "Made")
    await store.append(OWNER, "Made", [Append(content("seven"), SEEN, ("$Kept",), None)])
    await store.rename(OWNER, "Made", "Renamed")
    await store.create(OWNER, "Gone")
    await store.delete(OWNER, "Gone")
    assert await shown(store, "Renamed") == {1: {"\\Seen", "$Kept"}}
    assert shown_by_dovecot(dovecot, maildir, config, "Renamed") == {1: {"\\Seen", "$Kept"}}
    assert shown_by_dovecot(dovecot, maildir, config, "INBOX") == before | {5: set()}
    with dovecot.session(maildir, extra=config) as imap:
        names = {line.split()[-1].strip(b'"') for line in imap.lsub()[1] if line}
    assert b"Made" in names  # subscriptions stay with the name
    assert not list(maildir.rglob("dovecot-uidlist"))
    assert not list(maildir.rglob("dovecot-keywords"))
    assert not (maildir / "subscriptions").exists()
    assert len(list(control.rglob("dovecot-uidlist"))) == 3
    assert [line for line in dovecot.errors() if "Gone" not in line] == []


async def test_check_and_reindex_know_where_the_files_are(
    store: Store, mail: Mail, maildir: Path, control: Path, config: str
) -> None:
    """A torn uidlist in the control directory is found and mended there."""
    for number in range(3):
        await store.deliver([Delivery(OWNER, "INBOX", content(str(number)))])
    before = await shown(store, "INBOX")
    (uidlist,) = control.rglob("dovecot-uidlist")
    uidlist.write_bytes(uidlist.read_bytes()[:-5])
    layout = Layout(mail.layout, mail.separator)
    place = Place(os.fsencode(maildir), layout.fs, os.fsencode(control))

    def kinds() -> set[str]:
        audit = Audit(os.fsencode(maildir), layout, index_path(mail, OWNER), user=OWNER.email, place=place)
        return {finding.kind for finding in audit.run() if finding.wrong}

    assert kinds() >= {"uidlist_torn"}
    account = open_account(mail, OWNER, "mx.test")
    said: list[str] = []
    Mending(account, index_path(mail, OWNER), said.append).run()
    account.close()
    assert len(said) == 1
    assert kinds() == set()
    assert await shown(store, "INBOX") == before


def test_locations_and_variables() -> None:
    """As in Dovecot's mail_location."""
    location = Location.parse("maildir:/var/vmail/%d/%n:LAYOUT=fs:CONTROL=/c/%u:INDEX=~/index")
    assert (location.kind, location.path, location.layout) == ("maildir", "/var/vmail/%d/%n", "fs")
    owner = Owner("Example.TEST", "Alice")
    assert expand(location.path, owner) == "/var/vmail/example.test/alice"
    assert expand(location.control, owner) == "/c/alice@example.test"
    assert expand(location.index, owner, "/home/alice") == "/home/alice/index"
    assert expand("/v/%{user | domain}/%{user | username}", owner) == "/v/example.test/alice"
    assert expand("/v/%{domain}/%{username}", owner) == "/v/example.test/alice"

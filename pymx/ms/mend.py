"""`mailbox reindex`: put an account's index and Dovecot's files right, losing as little as can be.

Runs beside the server, under the same locks. In this order: a damaged index is moved aside and what can be read of it
saved into a new one; each mailbox is compared with its files in full; what the comparison at every access does not look
at is put right after it: keyword names that only the index still has, sizes, counters, files left in `tmp/`.

A name with a wrong S= or W= is changed, against the rule that a base never changes, because Dovecot would do it too, at
the next FETCH, and give the message a new UID. Here it keeps UID and GUID. Killed between the rename and the new
uidlist, up to 50 messages get new UIDs; none is lost.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable

from pymx.config import model
from pymx.ms import account as accounts
from pymx.ms import auditfiles, keywords, letters, morekeywords, names, salvage, subscriptions, uidlist
from pymx.ms.account import Account
from pymx.ms.box import Box, Hold
from pymx.ms.disk import Disk
from pymx.ms.dotlock import DotLock
from pymx.ms.dovecotplace import control_root
from pymx.ms.errors import translated
from pymx.ms.fault import some
from pymx.ms.index import NAME as INDEX_NAME
from pymx.ms.index import IndexBusy, IndexOutdated, IndexTrouble, open_read_only
from pymx.ms.layout import Layout, Levels, storage_name
from pymx.ms.owner import Owner
from pymx.ms.uidlist import Record

_BATCH = 50
_S = re.compile(rb",S=\d+(?=[,:]|$)")
_W = re.compile(rb",W=\d+(?=[,:]|$)")
Say = Callable[[str], None]


def index_path(mail: model.Mail, owner: Owner) -> bytes:
    """Where the index of an account is."""
    return os.path.join(owner.path(os.fsencode(mail.index_dir or mail.root)), INDEX_NAME)


def open_account(mail: model.Mail, owner: Owner, hostname: str) -> Account:
    """The account for one command, without a server around it; `close` it."""
    return Account(
        owner,
        owner.path(os.fsencode(mail.root)),
        index_path(mail, owner),
        Layout(mail.layout, mail.separator),
        disk=Disk(),
        host=names.host_part(hostname),
        changed=lambda *_: None,
        control=control_root(mail.control_dir, owner),
    )


class Mending:
    """Of one account. `say` is told each thing that was put right."""

    def __init__(self, account: Account, index: bytes, say: Say) -> None:
        self._account = account
        self._index = index
        self._say = say

    def run(self, only: Levels | None = None) -> None:
        """The whole account, or one mailbox (and the index, if it is damaged). Raises StoreError."""
        with translated():
            self._index_itself()
            there = [only] if only else list(self._account.layout.mailboxes(self._account.home.root))
            for levels in there:
                name = self._account.layout.name(levels)
                mend_mailbox(self._account.box(levels), lambda text, name=name: self._say(f"{name}: {text}"))  # type: ignore[misc]  # mypy does not infer lambdas with defaults
            if only is None:
                self._leftovers(there)
                self._subscriptions()

    def _index_itself(self) -> None:
        """Move a damaged index aside; what is readable of it comes over."""
        try:
            old = open_read_only(self._index)
        except (FileNotFoundError, IndexOutdated):
            return  # the first access below makes it
        except IndexBusy:
            raise
        except IndexTrouble:
            self._account.home.index.discard_damaged()
            self._say(
                "the index could not be read: moved aside as pymx.index.damaged-…, a new one is made from the files"
            )
            return
        with contextlib.closing(old):
            try:
                damaged = [t for (t,) in old.execute("PRAGMA quick_check(1)") if t != "ok"]
            except IndexTrouble as error:
                damaged = [str(error)]
            if not damaged:
                return
            self._account.home.index.discard_damaged()
            saved, home = 0, self._account.home
            with home.index.write() as new:
                for row in salvage.mailboxes(old):
                    path = home.path_of(row.name)
                    if path is None or not os.path.isdir(os.path.join(path, b"cur")):
                        continue
                    saved += salvage.copy(old, new, row, path, home.place.control_of(path, tuple(row.name.split("/"))))
        self._say(
            f"the index was damaged ({damaged[0]}): moved aside as pymx.index.damaged-…; "
            f"{saved} messages' rows were saved from it, the rest is made from the files"
        )

    def _leftovers(self, there: list[Levels]) -> None:
        """Rows of mailboxes that are gone, and rows of no mailbox."""
        known = {storage_name(levels) for levels in there}
        with self._account.home.index.write() as db:
            for mailbox, name, messages in db.execute("SELECT id, name, messages FROM mailbox").fetchall():
                path = self._account.home.path_of(name)
                if name in known or (path is not None and os.path.isdir(os.path.join(path, b"cur"))):
                    continue
                db.execute("DELETE FROM mailbox WHERE id=?", (mailbox,))
                if messages:
                    self._say(f"the index forgot {name}, which is gone")
            gone = db.execute("DELETE FROM message WHERE id >> 32 NOT IN (SELECT id FROM mailbox)").rowcount
            for table in ("rendered", "keys"):
                db.execute(f"DELETE FROM {table} WHERE id NOT IN (SELECT id FROM message)")  # noqa: S608
            for table in ("change", "keyword"):
                db.execute(f"DELETE FROM {table} WHERE mailbox NOT IN (SELECT id FROM mailbox)")  # noqa: S608
        if gone:
            self._say(f"{gone} rows that belonged to no mailbox were removed from the index")

    def _subscriptions(self) -> None:
        home, separator = self._account.home, "/" if self._account.layout.fs else "."
        path = os.path.join(home.place.account_files, subscriptions.NAME)
        try:
            with DotLock(home.disk, path):
                with open(path, "rb") as file:
                    data = file.read()
                if not any(wrong for *_, wrong in auditfiles.subscriptions_problems(data, separator, ())):
                    return
                version, found = subscriptions.parse(data.replace(b"\0", b""), separator)
                home.disk.replace_file(
                    path, path + b".tmp", subscriptions.to_bytes(version, found, separator), home.mode
                )
            home.disk.sync_directory(home.place.account_files)
        except FileNotFoundError:
            return
        self._say(f"subscriptions was written anew with the {len(found)} names that could be read")


def mend_mailbox(box: Box, say: Say) -> None:
    """Put one mailbox right."""
    names_before = _known_letters(box)
    before = _look(box)
    there = _uids(box)
    with Hold(box, full=True) as hold:
        _say_uidlist(before, hold, say)
        _say_messages(there, hold, say)
        _letters(hold, names_before, say)
        _rows(hold, say)
        counted = (hold.row.messages, hold.row.unseen, hold.row.deleted, hold.row.octets)
        hold.recount()
        if counted != (hold.row.messages, hold.row.unseen, hold.row.deleted, hold.row.octets):
            say(f"counted anew: {hold.row.messages} messages, {hold.row.octets} octets")
        _more_keywords(hold, say)
        hold.saved()
    _sizes(box, say)
    left = len(os.listdir(box.tmp))
    accounts.sweep_tmp(box)
    if swept := left - len(os.listdir(box.tmp)):
        say(f"{swept} files that deliveries left in tmp/ were removed")


def _look(box: Box) -> tuple[list[str], int]:
    """What was wrong with the uidlist, and its UIDVALIDITY in the index."""
    with box.home.index.read() as db:
        row = box.row(db)
    uidvalidity = row.uidvalidity if row else 0
    try:
        with open(box.uidlist, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return ["dovecot-uidlist is gone"], uidvalidity
    said = [text for _, text, wrong in auditfiles.uidlist_problems(data) if wrong]
    with contextlib.suppress(uidlist.Damaged):
        lost = _uids(box) - {uid for uid, *_ in uidlist.parse(data).records}
        if lost and not said:
            said.append(f"dovecot-uidlist had lost the lines of {len(lost)} UIDs")
    return said, uidvalidity


def _say_uidlist(before: tuple[list[str], int], hold: Hold, say: Say) -> None:
    said, uidvalidity = before
    if said:
        say(f"{some(said)}; it was written anew with {hold.row.messages} messages")
    if uidvalidity and uidvalidity != hold.row.uidvalidity:
        say(f"UIDVALIDITY was {uidvalidity}, is {hold.row.uidvalidity} now: clients load this mailbox anew")
    elif not uidvalidity and said:
        say("there was no index to take the UIDs from: what had no readable line has a new one")


def _uids(box: Box) -> set[int]:
    with box.home.index.read() as db:
        row = box.row(db)
        if row is None or not row.guid:
            return set()
        statement = "SELECT id & 4294967295 FROM message WHERE id BETWEEN ? AND ?"
        return {uid for (uid,) in db.execute(statement, (row.low, row.high))}


def _say_messages(before: set[int], hold: Hold, say: Say) -> None:
    statement = "SELECT id & 4294967295 FROM message WHERE id BETWEEN ? AND ?"
    now = {uid for (uid,) in hold.db.execute(statement, (hold.row.low, hold.row.high))}
    if now - before:
        say(f"{len(now - before)} messages were not in the index: UID {some([str(u) for u in sorted(now - before)])}")
    if before - now:
        gone = some([str(uid) for uid in sorted(before - now)])
        say(f"{len(before - now)} messages in the index have no file any more: UID {gone}")


def _known_letters(box: Box) -> list[str]:
    """The names of keyword letters as the index has them, before it takes over those of the file."""
    with box.home.index.read() as db:
        row = box.row(db)
        known = letters.keyword_names(db, row) if row else []
    return (known + [""] * names.LETTERS)[: names.LETTERS]


def _letters(hold: Hold, before: list[str], say: Say) -> None:
    """Names that are in use and only the index still had go back to dovecot-keywords, in which nothing stays twice."""
    found = keywords.read(hold.box.control)
    used = 0
    for (bits,) in hold.db.execute(
        "SELECT DISTINCT keywords FROM message WHERE id BETWEEN ? AND ?", (hold.row.low, hold.row.high)
    ):
        used |= bits
    taken = {name.lower() for name in found if name}
    back = {
        bit: name
        for bit, name in enumerate(before)
        if name and not found[bit] and used >> bit & 1 and name.lower() not in taken
    }
    try:
        with open(os.path.join(hold.box.control, keywords.NAME), "rb") as file:
            data: bytes | None = file.read()
    except FileNotFoundError:
        data = None
    problems = [kind for kind, _, wrong in auditfiles.keywords_problems(data, 0) if wrong and kind != "keywords_twice"]
    if not back and not problems:
        return
    for bit, name in back.items():
        found[bit] = name
    keywords.write(hold.disk, hold.box.control, found, hold.box.home.mode)
    hold.db.execute("DELETE FROM keyword WHERE mailbox=? AND bit<?", (hold.row.id, names.LETTERS))
    hold.db.executemany(
        "INSERT INTO keyword VALUES(?, ?, ?)", [(hold.row.id, bit, name) for bit, name in enumerate(found) if name]
    )
    hold.next_modseq()
    hold.touched()
    say(f"dovecot-keywords was written anew; names that only the index had: {some(list(back.values()), 26) or 'none'}")


def _rows(hold: Hold, say: Say) -> None:
    """Flags, keyword letters and sizes of the rows, as the file names have them."""
    with open(hold.box.uidlist, "rb") as file:
        keys = {base: line_keys for _, line_keys, base in uidlist.parse(file.read()).records}
    changed: list[tuple[int, int, int, int]] = []
    flagged = []
    for identity, flags, bits, octets, name in hold.db.execute(
        "SELECT id, flags, keywords, octets, name FROM message WHERE id BETWEEN ? AND ?", (hold.row.low, hold.row.high)
    ):
        there, low_bits = names.flags_of(name)
        all_bits = low_bits | bits & ~names.LETTER_MASK
        wire = auditfiles.claimed_sizes(name, keys.get(names.base_of(name), b""))[1]
        if (there, all_bits) != (flags, bits):
            flagged.append(identity & uidlist.MAX_UID)
        if (there, all_bits) != (flags, bits) or (wire is not None and wire != octets):
            changed.append((there, all_bits, octets if wire is None else wire, identity))
    if changed:
        hold.db.executemany("UPDATE message SET flags=?, keywords=?, octets=? WHERE id=?", changed)
        if flagged:
            hold.set_modseq(flagged)
        say(f"flags or sizes of {len(changed)} messages in the index were taken from their file names")


def _more_keywords(hold: Hold, say: Say) -> None:
    """`pymx-keywords` has what the rows have beyond the letters."""
    path = os.path.join(hold.box.path, morekeywords.NAME)
    statement = "SELECT count(*) FROM message WHERE id BETWEEN ? AND ? AND keywords >> 26"
    if hold.db.execute(statement, (hold.row.low, hold.row.high)).fetchone()[0] and not os.path.exists(path):
        morekeywords.write(hold)
        say("pymx-keywords was written anew")


# Sizes in names


def _sizes(box: Box, say: Say) -> None:
    """Messages whose name gives a wrong S= or W= get a right one; they are read without the lock."""
    with open(box.uidlist, "rb") as file:
        keys = {base: line_keys for _, line_keys, base in uidlist.parse(file.read()).records}
    wrong: list[tuple[int, bytes]] = []
    with box.home.index.read() as db:
        row = box.row(db)
        if row is None:
            return
        found = db.execute(
            "SELECT id & 4294967295, in_new, name FROM message WHERE id BETWEEN ? AND ?", (row.low, row.high)
        ).fetchall()
    packed = 0
    for uid, in_new, name in found:
        claimed = auditfiles.claimed_sizes(name, keys.get(names.base_of(name), b""))
        try:
            disk, wire, kind = auditfiles.true_sizes(os.path.join(box.new if in_new else box.cur, name))
        except FileNotFoundError:
            continue  # moved meanwhile: the next run finds it
        if kind:
            packed += 1
        elif claimed[0] not in (None, disk) or claimed[1] not in (None, wire):
            wrong.append((uid, name))
    for start in range(0, len(wrong), _BATCH):
        with Hold(box) as hold:
            _rename(hold, [uid for uid, _ in wrong[start : start + _BATCH]])
            hold.recount()
    if wrong:
        examples = some([os.fsdecode(name) for _, name in wrong])
        say(f"{len(wrong)} files had wrong sizes in their names and were renamed, UIDs as before: {examples}")
    if packed:
        say(f"{packed} messages are compressed or encrypted and were left alone")


def _rename(hold: Hold, uids: list[int]) -> None:
    box = hold.box
    with open(box.uidlist, "rb") as file:
        found = uidlist.parse(file.read())
    lines: dict[int, Record] = {record[0]: record for record in found.records}
    taken = {record[2] for record in found.records}
    rows = []
    for uid in uids:
        row = hold.db.execute("SELECT name, in_new, guid FROM message WHERE id=?", (hold.row.low | uid,)).fetchone()
        if row is None or uid not in lines:
            continue
        name, in_new, guid = row
        directory = box.new if in_new else box.cur
        try:
            disk, wire, _ = auditfiles.true_sizes(os.path.join(directory, name))
        except FileNotFoundError:
            continue
        base, colon, info = name.partition(b":")
        fresh = _W.sub(b",W=%d" % wire, _S.sub(b",S=%d" % disk, base))
        old_keys = lines[uid][1].split()
        keys = [key for key in old_keys if key[:1] not in (b"S", b"W")]
        if fresh != base:
            if fresh in taken:
                continue
            hold.disk.rename(os.path.join(directory, name), os.path.join(directory, fresh + colon + info))
            if not any(key[:1] == b"G" for key in keys):
                keys.insert(0, b"G" + (guid.encode() if guid else base))
            guid = next(key[1:] for key in keys if key[:1] == b"G").decode("ascii", "replace")
        lines[uid] = (uid, b"".join(b" " + key for key in keys), fresh)
        rows.append((fresh + colon + info, guid, wire, hold.row.low | uid))
    hold.rewrite([lines[record[0]] for record in found.records], extra=found.header.extra)
    hold.db.executemany("UPDATE message SET name=?, guid=?, octets=? WHERE id=?", rows)
    hold.db.executemany("DELETE FROM rendered WHERE id=?", [(row[3],) for row in rows])
    if rows:
        hold.set_modseq([row[3] & uidlist.MAX_UID for row in rows])

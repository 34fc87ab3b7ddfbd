"""From Dovecot and back, with a real Dovecot: looked at while it runs, compared, taken over, given back."""

from __future__ import annotations

import hashlib
import imaplib
import io
import json
import os
import shlex
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.dovecot import Dovecot
from support.tls import TlsFiles

from pymx.admin import ctl
from pymx.config.model import Mail
from pymx.mail.flags import SEEN
from pymx.ms import dovecotindex
from pymx.ms.owner import Owner
from pymx.ms.store import Append, Store
from pymx.spool import Content

OWNER = Owner("example.test", "alice")
ALICE = OWNER.email

MESSAGES = [
    b"From: Alice <alice@example.test>\nTo: Bob <bob@example.test>, =?utf-8?q?J=C3=BCrgen?= <j@example.test>\n"
    b"Subject: plain\nDate: Mon, 2 Sep 2024 10:00:00 +0200\nMessage-ID: <1@example.test>\n\nhello\n",
    b"Subject: =?iso-8859-1?q?Gr=FC=DFe?=\nFrom: group: a@example.test, \"B, C\" <b@example.test>;\n"
    b"In-Reply-To: <1@example.test>\nMIME-Version: 1.0\n"
    b"Content-Type: multipart/mixed; boundary=\"b1\"\n\npreamble\n--b1\n"
    b"Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n\nGr=C3=BC=C3=9Fe\n--b1\n"
    b"Content-Type: application/pdf; name=\"a b.pdf\"\nContent-Disposition: attachment; filename=\"a b.pdf\"\n"
    b"Content-Transfer-Encoding: base64\nContent-ID: <x@y>\nContent-Description: a file\n\nAAAA\n--b1--\n",
    b"Subject: forwarded\nContent-Type: multipart/digest; boundary=d\n\n--d\n\nSubject: inner\n"
    b"From: x@example.test\n\ntext\n--d\nContent-Type: message/rfc822\n\nSubject: second\n\nmore\n--d--\n",
    b"no header at all\n",
    b"\n",
    b"Subject: 8bit \xc3\xa4\nContent-Type: text/html\n\n<p>\xc3\xa4</p>\n",
]  # fmt: skip


@dataclass
class Ctl:
    config: Path

    def __call__(self, *words: str, stdin: str = "") -> tuple[int, str]:
        out = io.StringIO()
        with redirect_stdout(out), redirect_stderr(out):
            status = ctl.main(["--config", str(self.config), *words])
        return status, out.getvalue()

    def json(self, *words: str) -> tuple[int, dict]:
        status, out = self(*words, "--json")
        return status, json.loads(out)


@pytest.fixture
def pymxctl(tmp_path: Path) -> Callable[..., Ctl]:
    """With keys of [mail]."""

    def made(mail: str = "") -> Ctl:
        path = tmp_path / "pymx.toml"
        path.write_text(
            f'hostname = "mx.test"\ndata_dir = "{tmp_path}"\nuser = "none"\n[mail]\nroot = "{tmp_path}/mail"\n{mail}\n'
            f'[control]\nsocket = "{tmp_path}/run/control.sock"\n'
        )
        return Ctl(path)

    return made


@pytest.fixture
def maildir(tmp_path: Path) -> Path:
    path = tmp_path / "mail" / "example.test" / "alice"
    path.mkdir(parents=True, mode=0o700)
    return path


def fill(dovecot: Dovecot, maildir: Path, *, extra: str = "", separator: str = ".", prefix: str = "") -> None:
    """What a Dovecot of some years has: folders, flags, keywords, gaps in the UIDs."""
    folder = f"{prefix}Lists{separator}&AMQ-rger"
    with dovecot.session(maildir, extra=extra) as imap:
        imap.create(folder)
        imap.subscribe(folder)
        for number, message in enumerate(MESSAGES):
            flags = "(\\Seen $Work)" if number % 2 else "(\\Flagged)"
            date = '"02-Sep-2024 10:00:00 +0200"'
            assert imap.append("INBOX", flags, date, message.replace(b"\n", b"\r\n"))[0] == "OK"
            assert imap.append(f'"{folder}"', "(\\Answered Junk)", date, message.replace(b"\n", b"\r\n"))[0] == "OK"
        imap.noop()
        imap.uid("STORE", "2,4", "+FLAGS", "(\\Deleted)")
        imap.expunge()


def tree(directory: Path) -> dict[str, tuple[int, int, str]]:
    """Every file below: inode, mtime, content."""
    out = {}
    for path in sorted(directory.rglob("*")):
        found = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        out[str(path)] = (found.st_ino, found.st_mtime_ns, content)
    return out


def messages_of(directory: Path) -> dict[str, tuple[int, int, str]]:
    """`cur/` and `new/` and what is in them; the rest is written by Dovecot while it answers."""
    return {path: facts for path, facts in tree(directory).items() if "/cur" in path or "/new" in path}


def adopt_check(ctl_: Ctl, dovecot: Dovecot, maildir: Path, extra: str = "", *more: str) -> tuple[int, dict]:
    return ctl_.json(
        "adopt", "--check", ALICE, "--dovecot-config", str(dovecot.config_file(maildir, extra=extra)), *more
    )


def compared(ctl_: Ctl, dovecot: Dovecot, maildir: Path, extra: str = "") -> tuple[int, dict]:
    command = dovecot.imap_command(maildir, extra=extra)
    status, report = adopt_check(ctl_, dovecot, maildir, extra, "--exec", command)
    return status, report["accounts"][0]["compared"]


def test_check_reports_a_sound_tree_and_writes_nothing(
    pymxctl: Callable[..., Ctl], dovecot: Dovecot, maildir: Path
) -> None:
    """Layout, separator and prefix fit; not one file is made or changed."""
    fill(dovecot, maildir)
    before = tree(maildir)
    status, report = adopt_check(pymxctl(), dovecot, maildir)
    assert (status, report["sound"]) == (0, True), report
    account = report["accounts"][0]
    assert (account["layout"], account["mailboxes"], account["messages"]) == ("maildir++", 2, 10)
    assert tree(maildir) == before


def test_compare_finds_no_difference_message_by_message(
    pymxctl: Callable[..., Ctl], dovecot: Dovecot, maildir: Path
) -> None:
    """UID, flags, keywords, size, INTERNALDATE, ENVELOPE, BODYSTRUCTURE; and pymx leaves no file."""
    fill(dovecot, maildir)
    before = messages_of(maildir)
    status, found = compared(pymxctl(), dovecot, maildir)
    assert found["differences"] == {}, found["examples"]
    assert (status, found["mailboxes"], found["messages"]) == (0, 2, 10)
    assert messages_of(maildir) == before
    assert not [path for path in maildir.rglob("*") if "pymx" in path.name or path.name.endswith(".lock")]


@pytest.mark.parametrize(
    ("location", "mail", "separator", "prefix"),
    [
        (":LAYOUT=fs", 'layout = "fs"\nseparator = "/"', "/", ""),
        ("", 'separator = "/"\nprefix = "INBOX/"', "/", "INBOX/"),
    ],
    ids=["fs", "prefix"],
)
def test_compare_with_other_layouts_and_prefixes(
    pymxctl: Callable[..., Ctl], dovecot: Dovecot, maildir: Path, location: str, mail: str, separator: str, prefix: str
) -> None:
    """As Dovecot had them; a configuration that has them otherwise is told what to set."""
    extra = f"mail_location = maildir:{maildir}{location}\nnamespace inbox {{\n  inbox = yes\n"
    extra += f"  separator = {separator}\n  prefix = {prefix}\n}}\n"
    fill(dovecot, maildir, extra=extra, separator=separator, prefix=prefix)
    status, report = adopt_check(pymxctl(), dovecot, maildir, extra)
    assert status == 1
    kinds = {finding["kind"] for finding in report["findings"] if finding["wrong"]}
    assert "separator_other" in kinds
    assert ("prefix_other" in kinds, "layout_other" in kinds) == (bool(prefix), not prefix)
    status, found = compared(pymxctl(mail), dovecot, maildir, extra)
    assert found["differences"] == {}, found["examples"]
    assert (status, found["prefix"], found["separator"], found["mailboxes"]) == (0, prefix, separator, 2)


def test_compare_shows_keywords_that_only_dovecots_index_has(
    pymxctl: Callable[..., Ctl], dovecot: Dovecot, maildir: Path
) -> None:
    """Those beyond 26 have no letter in file names."""
    fill(dovecot, maildir)
    with dovecot.session(maildir) as imap:
        for number in range(30):
            imap.uid("STORE", "1", "+FLAGS", f"($k{number})")
    status, found = compared(pymxctl(), dovecot, maildir)
    assert (status, found["differences"]) == (1, {"keywords": 1})
    assert "$k29" in found["examples"][0]["other"]
    assert "$k29" not in found["examples"][0]["pymx"]


def test_compare_sees_new_mail_that_dovecot_has_not_seen(
    pymxctl: Callable[..., Ctl], dovecot: Dovecot, maildir: Path
) -> None:
    """Asked first, Dovecot gives it its UID; pymx then finds the same."""
    fill(dovecot, maildir)
    for number in range(3):
        (maildir / "new" / f"172500000{number}.M1P1.other").write_bytes(MESSAGES[number])
    status, found = compared(pymxctl(), dovecot, maildir)
    assert found["differences"] == {}, found["examples"]
    assert (status, found["messages"]) == (0, 13)
    assert len(list((maildir / "new").iterdir())) == 3  # EXAMINE moves nothing


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_check_finds_mailboxes_that_belong_to_somebody_else(pymxctl: Callable[..., Ctl], maildir: Path) -> None:
    """Dovecot may have run as another user."""
    (maildir / "cur").mkdir()
    (maildir / "cur").chmod(0o500)
    status, report = pymxctl().json("adopt", "--check", ALICE)
    (maildir / "cur").chmod(0o700)
    assert status == 1
    assert "not_ours" in {finding["kind"] for finding in report["accounts"][0]["findings"]}


def test_check_knows_control_and_index_directories(
    pymxctl: Callable[..., Ctl], dovecot: Dovecot, maildir: Path, tmp_path: Path
) -> None:
    """What to set is said, and pymx would then give the same answers; adopt refuses until it is set."""
    (tmp_path / "control").mkdir()
    extra = f"mail_location = maildir:{maildir}:CONTROL={tmp_path}/control:INDEX={tmp_path}/index\n"
    fill(dovecot, maildir, extra=extra)
    config = str(dovecot.config_file(maildir, extra=extra))
    status, report = adopt_check(
        pymxctl(), dovecot, maildir, extra, "--exec", dovecot.imap_command(maildir, extra=extra)
    )
    found = {finding["kind"]: finding for finding in report["accounts"][0]["findings"]}
    assert status == 1
    assert found["control_apart"]["remedy"] == f'set control_dir = "{tmp_path}/control" under [mail] in pymx.toml'
    assert not found["index_apart"]["wrong"]
    assert report["accounts"][0]["compared"]["differences"] == {}
    assert report["accounts"][0]["compared"]["messages"] == 10
    assert pymxctl()("adopt", "--dovecot-config", config)[0] == 1
    ctl_ = pymxctl(f'control_dir = "{tmp_path}/control"')
    status, found_now = compared(ctl_, dovecot, maildir, extra)
    assert (status, found_now["differences"]) == (0, {})
    assert ctl_("adopt", ALICE, "--dovecot-config", config) == (0, f"{ALICE} is taken over\n")
    assert not (maildir / "dovecot-uidlist").exists()


def test_check_finds_wrong_sizes_a_bad_uidlist_and_packed_messages(
    pymxctl: Callable[..., Ctl], dovecot: Dovecot, maildir: Path
) -> None:
    """What Dovecot would stumble over, and what pymx can't read."""
    fill(dovecot, maildir)
    first, second, *_ = sorted((maildir / "cur").iterdir())
    first.write_bytes(first.read_bytes() + b"more\n")
    second.write_bytes(b"\x1f\x8b\x08" + second.read_bytes())
    uidlist = maildir / "dovecot-uidlist"
    uidlist.write_bytes(uidlist.read_bytes()[:-3])
    status, report = adopt_check(pymxctl(), dovecot, maildir)
    kinds = {finding["kind"] for finding in report["accounts"][0]["findings"] if finding["wrong"]}
    assert status == 1
    assert {"size_wrong", "packed_gzip", "uidlist_torn"} <= kinds


def test_a_difference_is_counted_and_shown(pymxctl: Callable[..., Ctl], dovecot: Dovecot, maildir: Path) -> None:
    """By item, with both answers; exit status 1."""
    fill(dovecot, maildir)
    with dovecot.session(maildir) as imap:
        assert imap.uid("FETCH", "1:*", "(INTERNALDATE)")[0] == "OK"  # remembered in Dovecot's cache
    os.utime(sorted((maildir / "cur").iterdir())[0], (1_600_000_000, 1_600_000_000))
    config = str(dovecot.config_file(maildir))
    command = dovecot.imap_command(maildir)
    status, out = pymxctl()("adopt", "--check", ALICE, "--dovecot-config", config, "--exec", command)
    assert status == 1
    assert "differences: internaldate 1\n" in out
    assert "INBOX UID 1: internaldate: pymx 1600000000 | Dovecot 02-Sep-2024" in out


class TlsFront:
    """TLS in front of a plaintext port."""

    def __init__(self, port: int, files: TlsFiles) -> None:
        self._port = port
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(files.certificate, files.private_key)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, socket.create_connection(("127.0.0.1", self._port)) as server:
                try:
                    with self._context.wrap_socket(client, server_side=True) as tls:
                        back = threading.Thread(target=self._copy, args=(server, tls))
                        back.start()
                        self._copy(tls, server)
                        back.join()
                except OSError:
                    continue

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


@pytest.fixture
def tls_front(tls_files: TlsFiles) -> Iterator[Callable[[int], int]]:
    fronts: list[TlsFront] = []

    def made(port: int) -> int:
        fronts.append(TlsFront(port, tls_files))
        return fronts[-1].port

    yield made
    for front in fronts:
        front.close()


def test_compare_over_tls_with_a_running_server(
    pymxctl: Callable[..., Ctl],
    dovecot: Dovecot,
    maildir: Path,
    tls_front: Callable[[int], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """--compare HOST:PORT --password-stdin; a certificate nobody knows is refused unless --insecure."""
    fill(dovecot, maildir)
    ports = dovecot.serve(maildir.parent.parent)
    port = tls_front(ports.imap)
    words = ["adopt", "--check", ALICE, "--compare", f"127.0.0.1:{port}", "--password-stdin"]
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{ports.password}\n"))
    status, out = pymxctl()(*words)
    assert (status, "--insecure" in out) == (3, True), out
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{ports.password}\n"))
    status, report = pymxctl().json(*words, "--insecure")
    assert report["accounts"][0]["compared"]["differences"] == {}
    assert report["accounts"][0]["compared"]["messages"] == 10
    monkeypatch.setattr(sys, "stdin", io.StringIO("wrong\n"))
    status, out = pymxctl()(*words, "--insecure")
    assert (status, "refuses the login" in out) == (1, True), out


def test_adopt_refuses_while_dovecot_runs_and_says_how_to_stop_it(
    pymxctl: Callable[..., Ctl], dovecot: Dovecot, maildir: Path
) -> None:
    """Its master.pid, its sockets; --check goes on."""
    fill(dovecot, maildir)
    dovecot.serve(maildir.parent.parent)
    config = str(next(maildir.parents[2].rglob("server0.conf")))
    status, out = pymxctl()("adopt", "--dovecot-config", config)
    assert status == 1
    assert "Dovecot runs" in out
    status, report = pymxctl().json("adopt", "--check", "--dovecot-config", config)
    assert report["dovecot_runs"]
    dovecot.close()
    status, out = pymxctl()("adopt", "--dovecot-config", config)
    assert (status, "1 accounts" in out) == (0, True), out


def store_of(maildir: Path) -> Store:
    return Store(Mail(root=str(maildir.parent.parent)), render=None, runtime_dir=None, hostname="mx.test")


def flags_of(imap: imaplib.IMAP4) -> dict[int, set[str]]:
    out = {}
    for line in imap.uid("FETCH", "1:*", "(UID FLAGS)")[1]:
        words = line.decode().replace("(", " ").replace(")", " ").split()
        uid = int(words[words.index("UID") + 1])
        out[uid] = set(words[words.index("FLAGS") + 1 :]) - {"UID", str(uid), "\\Recent"}
    return out


async def test_uidnext_is_no_less_than_dovecots_index_says(
    pymxctl: Callable[..., Ctl], dovecot: Dovecot, maildir: Path
) -> None:
    """A uidlist restored from before: UIDs that Dovecot gave and expunged since are not given again."""
    fill(dovecot, maildir)
    uidlist = maildir / "dovecot-uidlist"
    old = uidlist.read_bytes()
    with dovecot.session(maildir) as imap:
        for _ in range(3):
            imap.append("INBOX", "", "", MESSAGES[0].replace(b"\n", b"\r\n"))
        for number in range(200):  # until Dovecot writes dovecot.index, not only its log
            imap.uid("STORE", "1", "+FLAGS", f"($z{number})")
        imap.uid("STORE", "7:9", "+FLAGS", "(\\Deleted)")
        imap.expunge()
    with dovecot.session(maildir) as imap:
        told = int(imap.response("UIDNEXT")[1][0])
    uidlist.write_bytes(old)
    index = dovecotindex.read(os.fsencode(maildir))
    assert index is not None
    assert index.next_uid == told == 10
    assert "$z50" in index.keywords
    store = store_of(maildir)
    await store.start()
    assert (await store.status(OWNER, "INBOX")).uidnext == told
    await store.close()
    assert b" N10 " in uidlist.read_bytes().split(b"\n")[0]
    with dovecot.session(maildir) as imap:
        assert sorted(flags_of(imap)) == [1, 3, 5, 6]
    assert dovecot.errors() == []


async def test_taken_over_and_released(pymxctl: Callable[..., Ctl], dovecot: Dovecot, maildir: Path) -> None:
    """Adopt, work in pymx, release with doveadm run: Dovecot has the same UIDs and goes on from pymx's MODSEQ."""
    fill(dovecot, maildir)
    ctl_ = pymxctl()
    config = str(dovecot.config_file(maildir))
    with dovecot.session(maildir) as imap:
        before = flags_of(imap)
    status, out = ctl_("adopt", ALICE, "--dovecot-config", config)
    assert (status, out) == (0, f"{ALICE} is taken over\n")
    store = store_of(maildir)
    await store.start()
    keywords = tuple(f"$k{number}" for number in range(26))
    content = Content.from_bytes(b"Subject: here\r\n\r\nhello\r\n")
    appended = await store.append(OWNER, "INBOX", [Append(content, SEEN, keywords, None)])
    modseq = (await store.status(OWNER, "INBOX")).highestmodseq
    await store.close()
    status, out = ctl_("release", ALICE)
    assert status == 0
    assert f"--min-highest-modseq {modseq} INBOX" in out
    assert "Lists.Ärger" in out
    assert "stay behind in pymx-keywords: $k25" in out
    dovecot.serve(maildir.parent.parent)
    config = str(next(maildir.parents[2].rglob("server0.conf")))
    doveadm = shlex.join([*dovecot.command(maildir, "doveadm"), "-c", config])
    status, out = ctl_("release", ALICE, "--execute", "--doveadm", doveadm)
    assert (status, f"INBOX: MODSEQ goes on from {modseq}" in out) == (0, True), out
    with dovecot.session(maildir) as imap:
        after = flags_of(imap)
        assert after.keys() == before.keys() | set(appended.uids)
        assert {uid: after[uid] for uid in before} == before
        assert int(imap.response("HIGHESTMODSEQ")[1][0]) >= modseq
    assert [line for line in dovecot.errors() if "doveadm" not in line] == []


def test_release_refuses_nothing_when_pymx_was_never_here(pymxctl: Callable[..., Ctl], maildir: Path) -> None:
    """There is nothing to tell."""
    (maildir / "cur").mkdir()
    assert pymxctl()("release") == (0, "pymx has used none of these mailboxes: there is nothing to tell Dovecot\n")

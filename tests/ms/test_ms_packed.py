"""Messages that Dovecot's zlib plugin compressed: served like others, and their files left as they are."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from ms_support import OWNER, maildir
from support.dovecot import Dovecot

from pymx.config.model import Mail
from pymx.mail.search import Header, Text
from pymx.ms import auditfiles, packed
from pymx.ms.mailbox import Mailbox
from pymx.ms.store import Store
from pymx.proto.imap.render import render

DATE = 1_600_000_000
MESSAGE = b"From: ann@example.test\nSubject: packed\n\n" + b"a line of the brown fox\n" * 5000
PACK = {
    "gzip": gzip.compress,
    "two members": lambda data: gzip.compress(data[:100]) + gzip.compress(data[100:]),
    "zstd": zstandard.compress,
    "zstd stream": lambda data: b"".join(zstandard.ZstdCompressor().chunker().compress(data)) + _end(data),
    "two frames": lambda data: zstandard.compress(data[:100]) + zstandard.compress(data[100:]),
}


def _end(data: bytes) -> bytes:
    """As `zstd stream` writes it: no size at the beginning, the rest at the end."""
    chunker = zstandard.ZstdCompressor().chunker()
    whole = b"".join([*chunker.compress(data), *chunker.finish()])
    return whole[len(b"".join(zstandard.ZstdCompressor().chunker().compress(data))) :]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(Mail(root=str(tmp_path / "mail")), render=render, runtime_dir=None, hostname="mx.test")
    await store.start()
    yield store
    await store.close()


def put(tmp_path: Path, data: bytes, name: str) -> Path:
    for part in ("cur", "new", "tmp"):
        (maildir(tmp_path) / part).mkdir(parents=True, exist_ok=True)
    path = maildir(tmp_path) / "cur" / f"{DATE}.{name}:2,S"
    path.write_bytes(data)
    os.utime(path, (DATE, DATE))
    return path


async def read(mailbox: Mailbox) -> list[tuple[bytes, bytes, int]]:
    """Each message whole and in chunks, and its size."""
    out = []
    async for _, message in mailbox.messages(mailbox.uids):
        assert message is not None
        out.append((await message.read(), b"".join([piece async for piece in message.chunks()]), message.octets))
    return out


@pytest.mark.parametrize("how", PACK)
@pytest.mark.parametrize("sizes", ["S,W", "S", ""])
async def test_packed_message_is_served_like_another(store: Store, tmp_path: Path, how: str, sizes: str) -> None:
    """Body, size, date, ENVELOPE and search; COPY links the file, with the sizes of the message in the new name."""
    wire = MESSAGE.replace(b"\n", b"\r\n")
    name = "M1P1.h" + f",S={len(MESSAGE)}" * ("S" in sizes) + f",W={len(wire)}" * ("W" in sizes)
    data = PACK[how](MESSAGE)
    path = put(tmp_path, data, name)
    mailbox = await store.open(OWNER, "INBOX", read_only=True)
    assert await read(mailbox) == [(wire, wire, len(wire))]
    ((row,),) = [batch async for batch in mailbox.rows(mailbox.uids, rendered=True)]
    assert (row[4], row[5], row[7:9]) == (len(wire), DATE, render(wire)[:2])
    assert await mailbox.search(Header("Subject", "packed")) == [1]
    assert await mailbox.search(Text("brown fox", headers=False)) == [1]
    assert await mailbox.previews(mailbox.uids, lazy=False)
    await store.create(OWNER, "Copies")
    await mailbox.copy(mailbox.uids, "Copies")
    mailbox.close()
    copy = await store.open(OWNER, "Copies", read_only=True)
    assert await read(copy) == [(wire, wire, len(wire))]
    (copied,) = (maildir(tmp_path) / ".Copies" / "cur").iterdir()
    assert copied.stat().st_ino == path.stat().st_ino
    assert f",S={len(MESSAGE)},W={len(wire)}:" in copied.name
    assert path.read_bytes() == data
    copy.close()
    assert auditfiles.true_sizes(os.fsencode(path)) == (len(MESSAGE), len(wire), "")


@pytest.mark.parametrize("how", ["gzip", "zstd"])
async def test_broken_file_is_served_as_it_lies(store: Store, tmp_path: Path, how: str) -> None:
    """One of them must not break a session."""
    data = PACK[how](MESSAGE)[:-20]
    path = put(tmp_path, data, "M1P1.h")
    mailbox = await store.open(OWNER, "INBOX", read_only=True)
    ((whole, pieces, _),) = await read(mailbox)
    assert whole == pieces
    assert whole.startswith(data[:4])
    assert await mailbox.search(Text("brown fox", headers=False)) == []
    assert auditfiles.true_sizes(os.fsencode(path))[2] == how
    mailbox.close()


def test_large_message_is_unpacked_on_disk_and_a_bomb_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "message"
    for pack in (gzip.compress, zstandard.compress):
        data = os.urandom(1000) + bytes(6_000_000)
        path.write_bytes(pack(data))
        with open(packed.open_plain(os.fsencode(path)), "rb") as file:
            assert file.read() == data
            assert "memfd" not in os.readlink(f"/proc/self/fd/{file.fileno()}")
        monkeypatch.setattr(packed, "MAX_OCTETS", 5_000_000)
        with open(packed.open_plain(os.fsencode(path)), "rb") as file:
            assert file.read() == path.read_bytes()
        monkeypatch.undo()


@given(st.binary(max_size=300), st.sampled_from(["gzip", "zstd"]), st.integers(0, 60), st.binary(max_size=3))
def test_any_octets_behind_the_magic_ones_are_survived(data: bytes, how: str, at: int, noise: bytes) -> None:
    whole = PACK[how](data)
    changed = whole[:4] + (whole[4 : 4 + at] + noise + whole[4 + at :])
    fd = os.memfd_create("test")
    os.write(fd, changed)
    with open(packed.plain(fd, b"test"), "rb") as file:
        file.seek(0)
        got = file.read()
    if not noise:
        assert got == data


def test_without_the_package_zstd_is_refused_with_the_remedy(tmp_path: Path) -> None:
    """Nothing wrong is remembered of such a message, and gzip goes on."""
    (tmp_path / "z").write_bytes(zstandard.compress(MESSAGE))
    (tmp_path / "g").write_bytes(gzip.compress(MESSAGE))
    code = (
        "import sys; sys.modules['zstandard'] = None\n"
        "from pymx.ms import auditfiles, packed\n"
        "print(auditfiles.true_sizes(b'z')[2], auditfiles.true_sizes(b'g')[2] or 'plain')\n"
        "packed.open_plain(b'g')\n"
        "try: packed.open_plain(b'z')\n"
        "except OSError as e: print(e.strerror)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "zstd plain\nzstd-compressed messages need the package zstandard: pip install 'pymx[zstd]'\n"


def test_zlib_is_not_what_is_meant(tmp_path: Path) -> None:
    """Dovecot has "deflate" for connections only: in files it is gzip."""
    path = tmp_path / "message"
    path.write_bytes(zlib.compress(MESSAGE))
    with open(packed.open_plain(os.fsencode(path)), "rb") as file:
        assert file.read() == path.read_bytes()


@pytest.mark.parametrize("save", ["gz", "zstd"])
async def test_what_dovecot_compressed_is_served_and_given_back(
    store: Store, tmp_path: Path, dovecot: Dovecot, save: str
) -> None:
    """S= in its names is the size of the message, and there is no mark but the first octets."""
    home = maildir(tmp_path)
    home.mkdir(parents=True, mode=0o700)
    extra = f"mail_plugins = zlib\nplugin {{\n  zlib_save = {save}\n  zlib_save_level = 6\n}}\n"
    wire = MESSAGE.replace(b"\n", b"\r\n")
    with dovecot.session(home, extra=extra) as imap:
        assert imap.append("INBOX", "(\\Seen)", None, wire)[0] == "OK"
    (path,) = (home / "cur").iterdir()
    assert packed.kind(path.read_bytes()) == {"gz": "gzip", "zstd": "zstd"}[save]
    mailbox = await store.open(OWNER, "INBOX", read_only=False)
    assert await read(mailbox) == [(wire, wire, len(wire))]
    assert await mailbox.search(Text("brown fox", headers=True)) == [1]
    await store.create(OWNER, "Copies")
    await mailbox.copy([1], "Copies")
    mailbox.close()
    with dovecot.session(home, "Copies", extra=extra) as imap:
        _, found = imap.uid("FETCH", "1", "(RFC822.SIZE BODY.PEEK[])")
        assert found[0][1] == wire
        assert b"RFC822.SIZE %d " % len(wire) in found[0][0]
    assert dovecot.errors() == []

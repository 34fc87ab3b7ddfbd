"""A store in a temporary directory, and messages for it."""

from __future__ import annotations

import os
from pathlib import Path

from pymx.config.model import Mail
from pymx.ms.box import Box
from pymx.ms.deliveries import Delivery
from pymx.ms.mailbox import Mailbox
from pymx.ms.owner import Owner
from pymx.ms.row import Row
from pymx.ms.store import Store
from pymx.spool import Content

OWNER = Owner("example.test", "alice")


def content(subject: str, octets: int = 20) -> Content:
    return Content.from_bytes(f"Subject: {subject}\r\n\r\n{'x' * octets}\r\n".encode())


def new_store(tmp_path: Path, *, runtime: bool = False, boot: str = "", layout: str = "maildir++") -> Store:
    return Store(
        Mail(root=str(tmp_path / "mail"), layout="fs" if layout == "fs" else "maildir++"),
        render=lambda message: (b"E" + message[:20], b"B", None),
        runtime_dir=tmp_path / "run" if runtime else None,
        hostname="mx.test",
        boot=boot,
    )


def maildir(tmp_path: Path, folder: str = "") -> Path:
    return tmp_path / "mail" / "example.test" / "alice" / folder


async def deliver(store: Store, *subjects: str, mailbox: str = "INBOX") -> list[int]:
    uids = []
    for subject in subjects:
        (result,) = await store.deliver([Delivery(OWNER, mailbox, content(subject))])
        if isinstance(result, Exception):
            raise result
        uids.append(result.uid)
    return uids


async def subjects(mailbox: Mailbox) -> dict[int, str]:
    """UIDs of the view to subjects."""
    out = {}
    async for uid, message in mailbox.messages(mailbox.uids):
        if message is not None:
            head = await message.read()
            assert len(head) == message.octets
            out[uid] = head.partition(b"\r\n")[0].decode().removeprefix("Subject: ")
    return out


async def look(store: Store, name: str = "INBOX") -> dict[int, str]:
    mailbox = await store.open(OWNER, name, read_only=True)
    found = await subjects(mailbox)
    mailbox.close()
    return found


def row_of(box: Box) -> Row:
    """The mailbox's row as it stands in the index."""
    with box.home.index.read() as db:
        row = box.row(db)
    assert row is not None
    return row


def files(directory: Path) -> list[Path]:
    """Message files, oldest name first."""
    return sorted([*(directory / "cur").iterdir(), *(directory / "new").iterdir()], key=lambda p: p.name)


def drop(directory: Path, name: str, subject: str, part: str = "new") -> None:
    """What a foreign program does to deliver."""
    path = directory / "tmp" / name
    path.write_bytes(f"Subject: {subject}\n\nforeign\n".encode())
    os.rename(path, directory / part / name)

"""Attributes of mailboxes (METADATA): in Dovecot's file, read by it, and there when everything else is built anew."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ms_support import OWNER, maildir, new_store
from support.dovecot import Dovecot

from pymx.ms import attributes
from pymx.ms.errors import InvalidName, LimitReached
from pymx.ms.store import Store

LIMIT = 10_000
VALUE = b'line one\r\nline "two"\ttab \x01 end \xc3\xa4'


async def put(store: Store, name: str, **values: bytes | None) -> None:
    await store.set_attributes(
        OWNER, name, {f"/private/{key}": value for key, value in values.items()}, max_octets=LIMIT
    )


async def test_attributes_outlive_the_index_and_a_rename_but_not_the_mailbox(tmp_path: Path) -> None:
    """The index is a cache; a mailbox of the same name made anew is another one."""
    store = new_store(tmp_path)
    await store.start()
    await store.create(OWNER, "One")
    await put(store, "One", comment=VALUE)
    await put(store, "", comment=b"of the account")
    await put(store, "INBOX", comment=b"of INBOX")
    await store.close()
    for file in maildir(tmp_path).glob("pymx.index*"):
        file.unlink()
    store = new_store(tmp_path)
    await store.start()
    await store.rename(OWNER, "One", "Two")
    assert await store.attributes(OWNER, "Two") == {"/private/comment": VALUE}
    assert await store.attributes(OWNER, "") == {"/private/comment": b"of the account"}
    assert await store.attributes(OWNER, "INBOX") == {"/private/comment": b"of INBOX"}
    await store.delete(OWNER, "Two")
    assert VALUE[:8] not in (maildir(tmp_path) / "dovecot-attributes").read_bytes()
    await store.create(OWNER, "Two")
    assert await store.attributes(OWNER, "Two") == {}
    await store.close()


async def test_limit_is_kept_and_taking_away_is_always_possible(tmp_path: Path) -> None:
    """RFC 5464 s. 4.3; an account that is over the limit (since it was lowered) can get below it."""
    store = new_store(tmp_path)
    await store.start()
    await put(store, "INBOX", a=b"x" * 4000, b=b"y" * 4000)
    with pytest.raises(LimitReached):
        await put(store, "INBOX", c=b"z" * 4000)
    with pytest.raises(LimitReached):
        await put(store, "INBOX", **{"d" * 4000: b""})
    await store.set_attributes(OWNER, "INBOX", {"/private/a": None}, max_octets=10)
    assert await store.attributes(OWNER, "INBOX") == {"/private/b": b"y" * 4000}
    with pytest.raises(InvalidName):
        await put(store, "INBOX", **{"vendor/vendor.dovecot/pvt/server/comment": b"x"})
    await store.close()


async def test_writers_do_not_lose_each_others_entries(tmp_path: Path) -> None:
    """Read, change and write are one step under Dovecot's lock."""
    stores = [new_store(tmp_path) for _ in range(2)]
    for store in stores:
        await store.start()
    await stores[0].attributes(OWNER, "INBOX")
    async with asyncio.TaskGroup() as tasks:
        for number in range(20):
            tasks.create_task(put(stores[number % 2], "INBOX", **{f"k{number}": b"v"}))
    assert len(await stores[0].attributes(OWNER, "INBOX")) == 20
    for store in stores:
        await store.close()


async def test_dovecot_reads_and_writes_the_same_attributes(tmp_path: Path, dovecot: Dovecot) -> None:
    """Both ways with `mail_attribute_dict` on the file: values with line ends, of mailboxes and of the account."""
    store = new_store(tmp_path)
    await store.start()
    await store.create(OWNER, "Sub")
    text = b"first\r\nsecond\t."
    await put(store, "Sub", comment=text, **{"vendor/x/y": b"plain"})
    await put(store, "", comment=b"server")
    await store.close()
    root = maildir(tmp_path)
    extra = f"mail_attribute_dict = file:{root}/dovecot-attributes\nprotocol imap {{\n  imap_metadata = yes\n}}"
    with dovecot.session(root, extra=extra) as client:
        for mailbox, entry, expected in (
            ("Sub", "/private/comment", text),
            ("Sub", "/private/vendor/x/y", b"plain"),
            ('""', "/private/comment", b"server"),
        ):
            status, _ = client.xatom("GETMETADATA", mailbox, entry)
            _, data = client.response("METADATA")
            assert status == "OK"
            assert expected in b"".join(b"".join(each) if isinstance(each, tuple) else each or b"" for each in data)
        assert client.xatom("SETMETADATA", "Sub", '(/shared/comment "from Dovecot" /private/vendor/x/y NIL)')[0] == "OK"
        assert client.xatom("SETMETADATA", '""', '(/private/vendor/a/b "too")')[0] == "OK"
    shutil.copy(root / "dovecot-attributes", tmp_path / "kept")
    store = new_store(tmp_path)
    await store.start()
    assert await store.attributes(OWNER, "Sub") == {"/private/comment": text, "/shared/comment": b"from Dovecot"}
    assert await store.attributes(OWNER, "") == {"/private/comment": b"server", "/private/vendor/a/b": b"too"}
    await store.close()
    assert not dovecot.errors()


async def test_a_damaged_file_is_kept_aside_before_it_is_changed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What can be read of it stays in use; reading alone changes nothing; what was cleared up is not kept again."""
    store = new_store(tmp_path)
    await store.start()
    await put(store, "INBOX", a=b"1", b=b"2", c=b"3")
    path = maildir(tmp_path) / "dovecot-attributes"
    lines = path.read_bytes().split(b"\n")
    damaged = b"\n".join([lines[0], lines[1], b"\0\0\0", lines[2], lines[3], lines[4], b"3 and no line e"])
    path.write_bytes(damaged)
    assert await store.attributes(OWNER, "INBOX") == {"/private/a": b"1", "/private/b": b"2"}
    await store.set_attributes(OWNER, "INBOX", {"/private/x": None}, max_octets=LIMIT)  # nothing to do
    assert path.read_bytes() == damaged
    await put(store, "INBOX", d=b"4")
    await put(store, "INBOX", e=b"5")
    (aside,) = maildir(tmp_path).glob("dovecot-attributes.damaged-*")
    assert aside.read_bytes() == damaged
    assert await store.attributes(OWNER, "INBOX") == {
        f"/private/{n}": v for n, v in zip("abde", (b"1", b"2", b"4", b"5"), strict=True)
    }
    (logged,) = (r for r in caplog.records if r.getMessage() == "attributes_damaged")
    assert logged.levelname == "WARNING"
    assert [f.name for f in await store.folders(OWNER)] == ["INBOX"]
    await store.close()


keys = st.sampled_from([b"priv/", b"shared/"]).flatmap(
    lambda kind: st.binary(max_size=20).map(lambda rest: kind + rest)
)


@given(st.dictionaries(keys, st.binary(max_size=20), max_size=5))
def test_file_round_trip(values: dict[bytes, bytes]) -> None:
    """Any octets, line ends and NUL among them, come back."""
    assert attributes.parse(attributes.to_bytes(values)) == (values, "")


@given(st.lists(st.sampled_from([b"priv/a", b"shared/b", b"\n", b"\0", b"\x01", b"x"])).map(b"".join))
def test_any_file_is_read(data: bytes) -> None:
    """A damaged file costs entries, not sessions; what is read is written and read the same."""
    found, _ = attributes.parse(data)
    assert attributes.parse(attributes.to_bytes(found)) == (found, "")


@pytest.mark.parametrize(
    ("data", "found", "wrong"),
    [
        (b"", {}, ""),
        (b"priv/a\n1\n", {b"priv/a": b"1"}, ""),
        (b"priv/a\n1\npriv/b\n2", {b"priv/a": b"1"}, "its last line is cut off"),
        (b"priv/a\n1\npriv/b\n", {b"priv/a": b"1"}, "its last value is missing"),
        (b"1\npriv/b\n2\n", {b"priv/b": b"2"}, "line 1 is no key"),
        (b"priv/a\n\0\0\n", {b"priv/a": b"\0\0"}, "it has NULs"),
    ],
)
def test_what_is_wrong_with_a_file(data: bytes, found: dict[bytes, bytes], wrong: str) -> None:
    assert attributes.parse(data) == (found, wrong)

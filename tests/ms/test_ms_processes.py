"""Several processes and foreign programs on one mailbox at the same time."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from ms_support import OWNER, content, deliver, drop, files, look, maildir, new_store

from pymx.mail.flags import DELETED, SEEN
from pymx.ms import uidlist
from pymx.ms.deliveries import Delivery
from pymx.ms.store import Append

_DELIVERER = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {here!r})
from ms_support import OWNER, content, new_store
from pymx.ms.deliveries import Delivered, Delivery

async def main(name):
    store = new_store(Path({top!r}))
    await store.start()
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range({count}):
        (done,) = await store.deliver([Delivery(OWNER, "INBOX", content(f"{{name}}-{{number}}"))])
        assert isinstance(done, Delivered), done
        print(done.uid, f"{{name}}-{{number}}", flush=True)
    await store.close()

asyncio.run(main(sys.argv[1]))
"""


def start(top: Path, name: str, count: int) -> subprocess.Popen[str]:
    script = _DELIVERER.format(here=str(Path(__file__).parent), top=str(top), count=count)
    process = subprocess.Popen(
        [sys.executable, "-c", script, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


def go(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()


def finish(process: subprocess.Popen[str]) -> dict[int, str]:
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return {int(uid): token for uid, token in (line.split() for line in out.splitlines())}


def check_uidlist(directory: Path, wanted: dict[int, str]) -> None:
    found = uidlist.parse((directory / "dovecot-uidlist").read_bytes())
    assert found.clean
    assert [uid for uid, _, _ in found.records] == sorted(wanted)


async def test_two_processes_deliver_into_one_mailbox(tmp_path: Path) -> None:
    """UIDs unique and ascending, uidlist and index of one mind."""
    store = new_store(tmp_path)
    await store.start()
    await deliver(store, "first")
    mailbox = await store.open(OWNER, "INBOX", read_only=False)
    processes = [start(tmp_path, name, 40) for name in ("one", "two")]
    go(*processes)
    while any(process.poll() is None for process in processes) and len(mailbox.uids) < 81:
        before = list(mailbox.uids)
        await mailbox.refresh()
        assert list(mailbox.uids)[: len(before)] == before
        await asyncio.sleep(0)
    told = [finish(process) for process in processes]
    assert not set(told[0]) & set(told[1])
    wanted = {1: "first", **told[0], **told[1]}
    assert await look(store) == wanted
    check_uidlist(maildir(tmp_path), wanted)
    assert (await store.status(OWNER, "INBOX")).messages == 81
    for path in maildir(tmp_path).glob("pymx.index*"):
        path.unlink()
    assert await look(store) == wanted
    mailbox.close()
    await store.close()


async def test_killed_in_the_middle_of_deliveries(tmp_path: Path) -> None:
    """What was acknowledged is there, once, with the UID that was given."""
    store = new_store(tmp_path)
    await store.start()
    acknowledged: dict[int, str] = {}
    for number in range(4):
        process = start(tmp_path, f"round{number}", 1000)
        go(process)
        assert process.stdout
        for _ in range(random.Random(number).randrange(3, 20)):
            uid, token = process.stdout.readline().split()
            acknowledged[int(uid)] = token
        process.kill()
        rest, _ = process.communicate()
        acknowledged |= {int(u): t for u, t in (line.split() for line in rest.splitlines() if line.count(" ") == 1)}
    found = await look(store)
    assert {uid: found.get(uid) for uid in acknowledged} == acknowledged
    assert len(set(found.values())) == len(found) <= len(acknowledged) + 4
    await store.close()


@pytest.mark.parametrize("seed", range(6))
async def test_two_stores_and_a_foreign_program_stay_of_one_mind(tmp_path: Path, seed: int) -> None:
    """Random deliveries, flags, expunges, copies by two stores; moves, flags, deliveries and unlinks by a foreign
    program, with directory times forced equal: views keep their order and end up alike, UIDs never change hands."""
    chance = random.Random(seed)
    stores = [new_store(tmp_path), new_store(tmp_path)]
    for store in stores:
        await store.start()
    await deliver(stores[0], "0")
    boxes = [await store.open(OWNER, "INBOX", read_only=False) for store in stores]
    owner_of: dict[int, str] = {}
    directory = maildir(tmp_path)
    for step in range(40):
        store, box = chance.choice(list(zip(stores, boxes, strict=True)))
        uids = list(box.uids)
        some = sorted(chance.sample(uids, min(len(uids), 2)))
        match chance.randrange(8):
            case 0 | 1:
                await store.deliver([Delivery(OWNER, "INBOX", content(f"{step}"))])
            case 2:
                await store.append(OWNER, "INBOX", [Append(content(f"{step}"), SEEN, ("k",), None)])
            case 3:
                await box.store_flags(some, chance.choice(["add", "remove", "set"]), SEEN, [f"w{step % 3}"])  # type: ignore[arg-type]
            case 4:
                await box.store_flags(some[:1], "add", DELETED, [])
                await box.expunge(some[:1])
            case 5:
                drop(directory, f"17000000{step:02d}.M{step}P1.foreign", f"{step}")
            case 6 if files(directory):
                path = chance.choice(files(directory))
                base = path.name.partition(":")[0]
                path.rename(directory / "cur" / f"{base}:2,{chance.choice(['', 'F', 'S', 'RS'])}")
            case 7 if files(directory):
                chance.choice(files(directory)).unlink()
        if chance.random() < 0.2:
            for part in ("cur", "new"):
                os.utime(directory / part, ns=(1_700_000_000_000_000_000 + step, 1_700_000_000_000_000_000 + step))
        for view in boxes:
            before = list(view.uids)
            changes = await view.refresh(expunge=chance.random() < 0.7)
            for position in changes.expunged:
                del before[position - 1]
            assert list(view.uids) == before + list(view.uids)[len(before) :]
            assert list(view.uids) == sorted(set(view.uids))
        for uid, subject in (await look(chance.choice(stores))).items():
            assert owner_of.setdefault(uid, subject) == subject
    on_disk = [path.read_text().partition("\n")[0].removeprefix("Subject: ") for path in files(directory)]
    for store, view in zip(stores, boxes, strict=True):
        await view.refresh()
        found = await look(store)
        assert sorted(found) == list(view.uids)
        assert sorted(found.values()) == sorted(on_disk)
        status = await store.status(OWNER, "INBOX")
        assert status.messages == len(found)
        view.close()
    assert uidlist.parse((directory / "dovecot-uidlist").read_bytes()).clean
    for store in stores:
        await store.close()

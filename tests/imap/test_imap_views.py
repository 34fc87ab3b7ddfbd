"""Several sessions on one mailbox: every client's picture of it stays right, whatever the others do.

Each client is checked by what a real one would keep: a list of UIDs, moved only by EXISTS and EXPUNGE.
"""

from __future__ import annotations

import random
import re

import pytest
from imap_rig import Client, Rig

MESSAGE = b"From: a@example.test\r\nSubject: hello\r\n\r\nText\r\n"
_EXISTS = re.compile(rb"\* (\d+) EXISTS")
_EXPUNGE = re.compile(rb"\* (\d+) EXPUNGE")
_VANISHED = re.compile(rb"\* VANISHED ([\d:,]+)")
_FETCH = re.compile(rb"\* (\d+) FETCH \((?:.* )?UID (\d+)")
_FETCH_NUMBER = re.compile(rb"\* (\d+) FETCH ")
_SEARCH = re.compile(rb"\* SEARCH((?: \d+)*)")

# RFC 3501 s. 7.4.1
QUIET = ("FETCH", "STORE", "SEARCH")


class Picture:
    """A client's view, as it knows it from what it was told."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.uids: list[int | None] = []
        self.qresync = False

    async def ask(self, command: str | bytes) -> list[bytes]:
        lines = await self.client.ask(command)
        word = (command if isinstance(command, str) else command.decode("latin-1")).split()[0]
        for line in lines[:-1]:
            self._take(word, line)
        assert b"SERVERBUG" not in lines[-1]
        assert not lines[-1].startswith(b"BAD"), (command, lines)
        return lines

    def _take(self, word: str, line: bytes) -> None:
        if found := _EXPUNGE.fullmatch(line):
            assert word not in QUIET, f"EXPUNGE in answer to {word}"
            assert not self.qresync, "RFC 7162 s. 3.2.10.2: VANISHED instead of EXPUNGE"
            del self.uids[int(found[1]) - 1]
        elif found := _VANISHED.fullmatch(line):
            assert word not in QUIET, f"VANISHED in answer to {word}"
            assert self.qresync
            for part in found[1].split(b","):
                first, _, last = part.partition(b":")
                for uid in range(int(first), int(last or first) + 1):
                    self._vanish(uid)
        elif found := _EXISTS.fullmatch(line):
            assert int(found[1]) >= len(self.uids), "EXISTS must not shrink a mailbox"
            self.uids += [None] * (int(found[1]) - len(self.uids))
        elif found := _FETCH.match(line):
            number, uid = int(found[1]), int(found[2])
            assert self.uids[number - 1] in (None, uid), f"{line!r}, but {number} is {self.uids[number - 1]}"
            self.uids[number - 1] = uid
        elif found := _FETCH_NUMBER.match(line):
            assert 1 <= int(found[1]) <= len(self.uids)

    def _vanish(self, uid: int) -> None:
        """A message whose UID was not learned lies between those that were, in the order of UIDs."""
        if uid in self.uids:
            self.uids.remove(uid)
            return
        above = next((at for at, known in enumerate(self.uids) if known is not None and known > uid), len(self.uids))
        assert above > 0, f"VANISHED {uid}, which never was here"
        assert self.uids[above - 1] is None, f"VANISHED {uid}, which never was here"
        del self.uids[above - 1]

    async def learn(self) -> None:
        """FETCH 1:* UID: all that exist are where we think they are, in ascending order."""
        if self.uids:
            await self.ask("FETCH 1:* (UID FLAGS)")
        known = [uid for uid in self.uids if uid is not None]
        assert known == sorted(set(known))


def _set(picture: Picture, chance: random.Random) -> str:
    first = chance.randint(1, len(picture.uids))
    return f"{first}:{chance.randint(1, len(picture.uids))}" if chance.random() < 0.5 else str(first)


async def _act(picture: Picture, chance: random.Random) -> None:
    literal = b"APPEND INBOX {%d+}\r\n" % len(MESSAGE) + MESSAGE
    always: list[str | bytes] = [
        literal,
        "NOOP",
        "EXPUNGE",
        "UID SEARCH ALL",
        "CHECK",
        "UID FETCH 1:* FLAGS",
        "UID STORE 1:* -FLAGS.SILENT \\Flagged",
        f"UID EXPUNGE {chance.randint(1, 9)}:{chance.randint(1, 30)}",
        "STATUS INBOX (MESSAGES)",
    ]
    if picture.uids:
        chosen = _set(picture, chance)
        always += [
            f"STORE {chosen} +FLAGS (\\Deleted)",
            f"STORE {chosen} -FLAGS.SILENT (\\Deleted $k{chance.randint(1, 3)})",
            f"STORE {chosen} +FLAGS (\\Flagged $k{chance.randint(1, 3)})",
            f"FETCH {chosen} (UID BODY[TEXT])",
            f"SEARCH {chosen} UNSEEN",
            f"MOVE {chosen} Trash",
            f"COPY {chosen} INBOX",
        ]
    await picture.ask(chance.choice(always))


@pytest.mark.parametrize("seed", range(8))
async def test_every_client_keeps_a_right_picture(rig: Rig, seed: int) -> None:
    """RFC 3501 s. 2.3.1.2, 5.2, 7.4.1: sequence numbers change when they may and mean the same to both sides."""
    chance = random.Random(seed)
    for _ in range(4):
        await rig.deliver(MESSAGE)
    pictures = []
    for number in range(3):
        picture = Picture(await rig.login())
        if number == 2:
            picture.qresync = True
            await picture.ask("ENABLE QRESYNC")
        await picture.ask("SELECT INBOX")
        pictures.append(picture)
    for _ in range(70):
        picture = chance.choice(pictures)
        await _act(picture, chance)
        if chance.random() < 0.3:
            await picture.learn()
    found = []
    for picture in pictures:
        await picture.ask("NOOP")
        await picture.learn()
        uids = (await picture.client.ok("UID SEARCH ALL"))[0]
        matched = _SEARCH.fullmatch(uids)
        assert matched
        assert picture.uids == [int(uid) for uid in matched[1].split()]
        found.append(picture.uids)
        await picture.client.close()
    assert found[0] == found[1] == found[2]


async def test_changedsince_answers_for_the_messages_asked_for_only(rig: Rig) -> None:
    """RFC 7162 s. 3.1.4.1: a message set with holes stays one, also if all that lies between its ends has changed."""
    for _ in range(5):
        await rig.deliver(MESSAGE)
    one = await rig.select()
    lines = await one.ok("UID FETCH 1,3,5 (FLAGS) (CHANGEDSINCE 1)")
    assert [int(uid) for uid in re.findall(rb"UID (\d+)", b"\n".join(lines))] == [1, 3, 5]
    await one.close()


async def test_flags_changed_by_others_are_told_when_the_mailbox_gets_another_name(rig: Rig) -> None:
    """RFC 3501 s. 7.4.2: RENAME of the selected mailbox goes on with it, and forgets nothing."""
    one = await rig.login()
    await one.ok("CREATE Old")
    await one.append(MESSAGE, "Old")
    await one.append(MESSAGE, "Old")
    await one.ok("SELECT Old")
    two = await rig.select("Old")
    await two.ok("STORE 2 +FLAGS (\\Flagged $Label)")
    lines = await one.ok("RENAME Old New")
    assert lines[0].startswith(b"* FLAGS (")
    assert b"$Label" in lines[0]
    (told,) = (line for line in lines if b" FETCH " in line)
    assert told.startswith(b"* 2 FETCH (")
    assert b"\\Flagged" in told
    await one.close()
    await two.close()


async def test_search_finds_a_keyword_that_others_have_just_made(rig: Rig) -> None:
    """RFC 3501 s. 6.4.4: by what the messages are now, also where FLAGS has not named the keyword yet."""
    await rig.deliver(MESSAGE)
    one, two = await rig.select(), await rig.select()
    await two.ok("STORE 1 +FLAGS ($Label)")
    assert (await one.ok("SEARCH KEYWORD $Label"))[0] == b"* SEARCH 1"
    await one.close()
    await two.close()

"""The queue of lessons, what moves say, and what rspamd's controller answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import pytest
from support.wait import wait_until

from pymx.junk.controller import RspamdTeacher
from pymx.junk.learn import (
    MAX_WAITING,
    TRIES,
    Kind,
    Learner,
    Lesson,
    LessonRefused,
    TeacherUnavailable,
    kind_of_move,
)


@pytest.mark.parametrize(
    ("source", "source_use", "target_use", "kind"),
    [
        ("INBOX", "", "\\Junk", Kind.SPAM),
        ("Lists", "", "\\Junk", Kind.SPAM),
        ("Archive", "\\Archive", "\\Junk", Kind.SPAM),
        ("Junk", "\\Junk", "", Kind.HAM),
        ("Junk", "\\Junk", "\\Archive", Kind.HAM),
        ("Junk", "\\Junk", "\\Trash", None),
        ("Trash", "\\Trash", "\\Junk", None),
        ("Trash", "\\Trash", "", None),
        ("Sent", "\\Sent", "\\Junk", None),
        ("Junk", "\\Junk", "\\Drafts", None),
        ("Junk", "\\Junk", "\\Junk", None),
        ("INBOX", "", "", Kind.KEPT),
        ("INBOX", "", "\\Archive", Kind.KEPT),
        ("INBOX", "", "\\Trash", None),
        ("Lists", "", "\\Archive", None),
    ],
)
def test_what_a_move_says(source: str, source_use: str, target_use: str, kind: Kind | None) -> None:
    """Into Junk is spam, out of it is not, but for Trash, which nobody judges by."""
    assert kind_of_move(source, source_use, target_use) is kind


class Class:
    """A teacher who does as told: each entry of `troubles` is raised once, in order."""

    def __init__(self, troubles: Sequence[Exception] = ()) -> None:
        self.kinds = frozenset({Kind.SPAM, Kind.HAM})
        self.troubles = list(troubles)
        self.tries = 0
        self.learned: list[tuple[str, bytes, Kind]] = []
        self.at_once = 0
        self.most_at_once = 0

    async def teach(self, account: str, message: bytes, kind: Kind) -> bool:
        self.tries += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        if self.troubles:
            raise self.troubles.pop(0)
        self.learned.append((account, message, kind))
        return True

    async def close(self) -> None:
        """Nothing is held."""


async def numbered(lesson: Lesson) -> AsyncGenerator[tuple[int, bytes], None]:
    for uid in lesson.uids:
        yield uid, b"%d" % uid


def lesson(*uids: int, kind: Kind = Kind.SPAM) -> Lesson:
    return Lesson("alice@example.test", "Junk", 1, uids, kind)


@contextlib.asynccontextmanager
async def learning(teacher: Class, read: Any = numbered) -> AsyncGenerator[Learner, None]:
    learner = Learner(teacher, read, pause_s=0.01)
    learner.start()
    yield learner
    await learner.close()


async def test_lessons_are_learned_in_order_one_at_a_time() -> None:
    """What was moved last decides, so no lesson may overtake another."""
    teacher = Class()
    async with learning(teacher) as learner:
        for uid in range(20):
            learner.learn(lesson(uid, kind=Kind.SPAM if uid % 2 else Kind.HAM))
        await wait_until(lambda: len(teacher.learned) == 20)
    assert [int(message) for _, message, _ in teacher.learned] == list(range(20))
    assert teacher.most_at_once == 1


async def test_what_the_teacher_does_not_want_is_not_read() -> None:
    teacher = Class()
    async with learning(teacher) as learner:
        learner.learn(lesson(1, kind=Kind.KEPT))
        learner.learn(lesson(2))
        await wait_until(lambda: teacher.learned)
    assert [message for _, message, _ in teacher.learned] == [b"2"]


async def test_lessons_of_what_stayed_do_not_pile_up() -> None:
    """Each move into Junk asks for one; a user who moves thousands must not fill the memory with them."""
    teacher = Class()
    teacher.kinds = frozenset({Kind.STAYED})
    reads = 0

    async def inbox(lesson: Lesson) -> AsyncGenerator[tuple[int, bytes], None]:
        nonlocal reads
        reads += 1
        yield reads, b""

    async with learning(teacher, inbox) as learner:
        for _ in range(1000):
            learner.learn(lesson(kind=Kind.STAYED))
        await wait_until(lambda: teacher.learned)
        learner.learn(lesson(kind=Kind.STAYED))
        await wait_until(lambda: len(teacher.learned) == 2)
    assert reads == 2


async def test_a_teacher_that_is_away_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    teacher = Class([TeacherUnavailable("gone")] * (TRIES - 1))
    async with learning(teacher) as learner:
        learner.learn(lesson(1))
        await wait_until(lambda: teacher.learned)
    assert teacher.tries == TRIES
    assert "learning_failed" not in [r.getMessage() for r in caplog.records]


async def test_one_that_stays_away_costs_one_try_a_message_and_one_line_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    teacher = Class([TeacherUnavailable("gone")] * (TRIES + 4))
    async with learning(teacher) as learner:
        learner.learn(lesson(*range(7)))
        await wait_until(lambda: len(teacher.learned) == 2)
    assert teacher.tries == TRIES + 4 + 2
    assert [r.getMessage() for r in caplog.records].count("learning_failed") == 1


async def test_a_refused_lesson_is_not_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    teacher = Class([LessonRefused("400")])
    async with learning(teacher) as learner:
        learner.learn(lesson(1, 2))
        await wait_until(lambda: teacher.learned)
    assert teacher.tries == 2
    assert [r.getMessage() for r in caplog.records].count("lesson_refused") == 1


async def test_a_reader_or_teacher_that_breaks_ends_one_lesson_only(caplog: pytest.LogCaptureFixture) -> None:
    async def read(wanted: Lesson) -> AsyncGenerator[tuple[int, bytes], None]:
        if wanted.uids == (1,):
            raise ValueError("broken")
        if wanted.uids == (2,):
            raise TeacherUnavailable("disk")
        async for pair in numbered(wanted):
            yield pair

    teacher = Class()
    async with learning(teacher, read) as learner:
        for uid in (1, 2, 3):
            learner.learn(lesson(uid))
        await wait_until(lambda: teacher.learned)
    events = [r.getMessage() for r in caplog.records]
    assert events.count("learning_crashed") == 1
    assert events.count("learning_failed") == 1


async def test_the_queue_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """A move of more messages than may wait teaches the first of them; one line says so."""
    teacher = Class()
    async with learning(teacher) as learner:
        learner.learn(lesson(*range(MAX_WAITING + 500)))
        learner.learn(lesson(9999))
        await wait_until(lambda: len(teacher.learned) == MAX_WAITING)
        learner.learn(lesson(1))
        await wait_until(lambda: len(teacher.learned) == MAX_WAITING + 1)
    assert [r.getMessage() for r in caplog.records].count("lessons_left_out") == 1


Answer = Callable[[str], None]


@contextlib.asynccontextmanager
async def controller(status: str, body: str = "{}") -> AsyncGenerator[tuple[RspamdTeacher, list[bytes]], None]:
    """A stand-in that gives one answer; the requests it got."""
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        requests.append(head + await reader.readexactly(length))
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    teacher = RspamdTeacher(url, password="secret", timeout_s=5, max_octets=1000)
    try:
        yield teacher, requests
    finally:
        await teacher.close()
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize(
    ("status", "body", "answer"),
    [
        ("200 OK", '{"success":true}', True),
        ("208 Already Reported", '{"error":"<1@x> has been already learned as spam, ignore it"}', False),
        ("404 Not Found", '{"error":"<1@x> has been already learned as spam, ignore it"}', False),
        ("204 No Content", "", False),
        ("401 Unauthorized", '{"error":"Unauthorized"}', TeacherUnavailable),
        ("403 Forbidden", "", TeacherUnavailable),
        ("404 Not Found", "", LessonRefused),
        ("400 Bad Request", "", LessonRefused),
        ("429 Too Many Requests", "", TeacherUnavailable),
        ("500 Internal Server Error", "", TeacherUnavailable),
        ("503 Service Unavailable", "", TeacherUnavailable),
        ("302 Found", "", TeacherUnavailable),
    ],
)
async def test_answers_of_the_controller(status: str, body: str, answer: bool | type[Exception]) -> None:
    """ "Already learned" is no error; a wrong password can be set right, so it is tried again."""
    async with controller(status, body) as (teacher, requests):
        if isinstance(answer, bool):
            assert await teacher.teach("a@x.test", b"message", Kind.SPAM) is answer
        else:
            with pytest.raises(answer):
                await teacher.teach("a@x.test", b"message", Kind.SPAM)
    (request,) = requests
    assert request.startswith(b"POST /learnspam HTTP/1.1\r\n")
    assert b"\r\nPassword: secret\r\n" in request
    assert request.endswith(b"\r\n\r\nmessage")


async def test_a_controller_that_is_down_or_hangs_is_unavailable() -> None:
    async with controller("200 OK") as (teacher, _):
        with pytest.raises(LessonRefused):
            await teacher.teach("a@x.test", b"x" * 1001, Kind.HAM)
    with pytest.raises(TeacherUnavailable):
        await teacher.teach("a@x.test", b"x", Kind.HAM)
    await teacher.close()

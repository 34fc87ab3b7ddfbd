"""Examples of the RFCs and of clients as dialogues, against a real server, store and TLS.

Each file in dialogues/ is one. `C: ` is sent, `S: ` expected, `C2: ` and `S2: ` are a second session; `C| ` is sent
without looking for an answer being a line of a literal. In what is expected, … stands for any text, and ‹name› for text
that is the same wherever the name comes again; what is sent may name it too.

`login` logs in as alice, `login2` opens the second session. `deliver [MAILBOX]` brings a message: the one in the lines
`M| ` before it, or a usual one; `old COUNT` so many of the beginning of 1994. `greeting` is what the first session
was greeted with, `deflate` compresses it from here on, and `reconnect` begins it anew after LOGOUT. At the end nothing
else may have been said, except that after LOGOUT the server has closed.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from pathlib import Path

import pytest
from imap_rig import ALICE, Client, Rig, running
from support.tls import TlsFiles

from pymx.config.model import Mail
from pymx.ms.store import Append
from pymx.spool import Content

DIALOGUES = sorted((Path(__file__).parent / "dialogues").glob("*.txt"))

# The message of RFC 3501 s. 8, with a body of 92 lines and 3028 octets.
MESSAGE = (
    b"Date: Wed, 17 Jul 1996 02:23:25 -0700 (PDT)\r\n"
    b"From: Terry Gray <gray@cac.washington.edu>\r\n"
    b"Subject: IMAP4rev1 WG mtg summary and minutes\r\n"
    b"To: imap@cac.washington.edu\r\n"
    b"cc: minutes@CNRI.Reston.VA.US, John Klensin <KLENSIN@MIT.EDU>\r\n"
    b"Message-Id: <B27397-0100000@cac.washington.edu>\r\n"
    b"MIME-Version: 1.0\r\n"
    b"Content-Type: TEXT/PLAIN; CHARSET=US-ASCII\r\n"
    b"\r\n" + (b"x" * 31 + b"\r\n") * 91 + b"y" * 23 + b"\r\n"
)


def _pattern(expected: str, known: dict[str, str]) -> re.Pattern[str]:
    parts = []
    for piece in re.split(r"(…|‹\w+›)", expected):
        if piece == "…":
            parts.append(".*?")
        elif piece.startswith("‹"):
            name = piece[1:-1]
            parts.append(re.escape(known[name]) if name in known else f"(?P<{name}>\\S+?)")
        else:
            parts.append(re.escape(piece))
    return re.compile("".join(parts))


class _Deflated:
    """The lines of a compressed stream (RFC 4978)."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._unpacker = zlib.decompressobj(-15)
        self._data = b""

    async def readline(self) -> bytes:
        while b"\n" not in self._data:
            packed = await self._reader.read(65_536)
            if not packed:
                break
            self._data += self._unpacker.decompress(packed)
        line, newline, self._data = self._data.partition(b"\n")
        return line + newline


class _Dialogue:
    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.clients: dict[str, Client] = {}
        self.known: dict[str, str] = {}
        self.message: list[str] = []
        self.packer: zlib._Compress | None = None  # of the first session

    async def play(self, text: str) -> None:
        self.clients["C"] = await self.rig.connect()
        for number, line in enumerate(text.splitlines(), 1):
            if line and not line.startswith("#"):
                await self._step(number, line)
        for name, client in self.clients.items():
            if self.gone(text, name):
                assert await self._read(client) == ""
            else:
                self._send(name, "zz NOOP")
                assert await self._read(client) == "zz OK NOOP completed."
            await client.close()

    def gone(self, text: str, name: str) -> bool:
        said = [line for line in text.splitlines() if line.startswith(f"{name}: ")]
        return bool(said) and said[-1].upper().endswith(" LOGOUT")

    def _send(self, name: str, line: str) -> None:
        data = line.encode() + b"\r\n"
        if self.packer is not None and name == "C":
            # so flush the clients that compress
            data = self.packer.compress(data) + self.packer.flush(zlib.Z_PARTIAL_FLUSH)
        self.clients[name].send(data)

    async def _step(self, number: int, line: str) -> None:
        word, _, rest = line.partition(" ")
        match word:
            case "login" | "login2":
                if word == "login2":
                    self.clients["C2"] = await self.rig.connect()
                client = self.clients["C2" if word == "login2" else "C"]
                assert (await client.ask("LOGIN alice@example.test secret"))[-1].startswith(b"OK")
            case "deliver":
                message = "".join(f"{each}\r\n" for each in self.message).encode()
                await self.rig.deliver(message or MESSAGE, rest or "INBOX")
                self.message = []
            case "old":
                item = Append(Content.from_bytes(b"Subject: old\r\n\r\n"), 0, (), 757_382_400)
                await self.rig.store.append(ALICE, "INBOX", [item] * int(rest))
            case "M|":
                self.message.append(rest)
            case "greeting":
                said = self.clients["C"].greeting.decode()
                assert _pattern(rest, self.known).fullmatch(said), said
            case "reconnect":
                assert await self._read(self.clients["C"]) == "", "the server has not closed"
                await self.clients["C"].close()
                self.clients["C"] = await self.rig.connect()
                self.packer = None
            case "deflate":
                self.packer = zlib.compressobj(wbits=-15)
                self.clients["C"].reader = _Deflated(self.clients["C"].reader)  # type: ignore[assignment]
            case "C:" | "C2:" | "C|":
                said = re.sub(r"‹(\w+)›", lambda found: self.known[found[1]], rest)
                self._send(word[:-1], said)
            case "S:" | "S2:":
                said = await self._read(self.clients[word[:-1].replace("S", "C")])
                match = _pattern(rest, self.known).fullmatch(said)
                assert match, f"line {number}: expected {rest!r}, the server said {said!r}"
                self.known.update(match.groupdict())
            case _:
                raise AssertionError(f"line {number}: {line!r}")

    async def _read(self, client: Client) -> str:
        async with asyncio.timeout(10):
            return (await client.reader.readline()).removesuffix(b"\r\n").decode()


@pytest.mark.parametrize("path", DIALOGUES, ids=lambda path: path.stem)
async def test_dialogue_goes_as_written(path: Path, tmp_path: Path, tls_files: TlsFiles) -> None:
    """The examples of the RFC named at the top of the file. A first line `# mail: KEY=VALUE …` sets [mail] keys."""
    text = path.read_text()
    settings = dict(re.findall(r"(\w+)=(\S+)", text.splitlines()[0])) if text.startswith("# mail:") else {}
    values = {name: int(value) if value.isdecimal() else value for name, value in settings.items()}
    async with running(tmp_path, tls_files, mail=Mail(**values)) as rig:
        await _Dialogue(rig).play(text)

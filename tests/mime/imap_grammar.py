"""A strict reader of the IMAP data grammar (RFC 3501 s. 9): anything that is not to the letter is an AssertionError."""

from __future__ import annotations


class Reader:
    """Reads from the front of `data`; every method asserts the exact syntax and gives the value."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def peek(self, text: bytes) -> bool:
        return self.data.startswith(text, self.at)

    def take(self, text: bytes) -> None:
        assert self.peek(text), f"wanted {text!r}, found {self.data[self.at : self.at + 60]!r}"
        self.at += len(text)

    def end(self) -> None:
        assert self.at == len(self.data), f"trailing {self.data[self.at : self.at + 60]!r}"

    def number(self) -> int:
        start = self.at
        while self.data[self.at : self.at + 1].isdigit():
            self.at += 1
        assert self.at > start, f"wanted a number, found {self.data[start : start + 60]!r}"
        value = int(self.data[start : self.at])
        assert value < 1 << 32
        return value

    def quoted(self) -> bytes:
        self.take(b'"')
        out = bytearray()
        while True:
            char = self.data[self.at]
            self.at += 1
            if char == 0x22:
                return bytes(out)
            assert char not in (0, 10, 13), "CR, LF or NUL in a quoted string"
            assert char < 0x80, "8-bit octet in a quoted string"
            if char == 0x5C:
                char = self.data[self.at]
                assert char in b'"\\', "only quoted-specials may be escaped"
                self.at += 1
            out.append(char)

    def string(self) -> bytes:
        if self.peek(b'"'):
            return self.quoted()
        self.take(b"{")
        octets = self.number()
        self.take(b"}\r\n")
        value = self.data[self.at : self.at + octets]
        assert len(value) == octets
        assert b"\0" not in value, "NUL in a literal"
        self.at += octets
        return value

    def nstring(self) -> bytes | None:
        if self.peek(b"NIL"):
            self.take(b"NIL")
            return None
        return self.string()

    def address_list(self):
        if self.peek(b"NIL"):
            self.take(b"NIL")
            return None
        self.take(b"(")
        addresses = []
        while not self.peek(b")"):
            self.take(b"(")
            one = [self.nstring()]
            for _ in range(3):
                self.take(b" ")
                one.append(self.nstring())
            self.take(b")")
            addresses.append(tuple(one))
        self.take(b")")
        assert addresses, "an address list holds one address at least"
        return addresses

    def envelope(self):
        self.take(b"(")
        fields = [self.nstring()]
        self.take(b" ")
        fields.append(self.nstring())
        for _ in range(6):
            self.take(b" ")
            fields.append(self.address_list())
        for _ in range(2):
            self.take(b" ")
            fields.append(self.nstring())
        self.take(b")")
        return fields

    def params(self):
        if self.peek(b"NIL"):
            self.take(b"NIL")
            return None
        self.take(b"(")
        pairs = []
        while True:
            name = self.string()
            self.take(b" ")
            pairs.append((name, self.string()))
            if self.peek(b")"):
                break
            self.take(b" ")
        self.take(b")")
        return pairs

    def extension(self):
        """[SP disposition SP language SP location], all of it."""
        self.take(b" ")
        if self.peek(b"NIL"):
            self.take(b"NIL")
            disposition = None
        else:
            self.take(b"(")
            kind = self.string()
            self.take(b" ")
            disposition = (kind.lower(), self.params())
            self.take(b")")
        self.take(b" ")
        if self.peek(b"("):
            self.take(b"(")
            languages = [self.string()]
            while self.peek(b" "):
                self.take(b" ")
                languages.append(self.string())
            self.take(b")")
        else:
            one = self.nstring()
            languages = None if one is None else [one]
        self.take(b" ")
        return disposition, languages, self.nstring()

    def body(self, *, extended: bool):
        self.take(b"(")
        if self.peek(b"("):
            out = self._multipart(extended=extended)
        else:
            out = self._single(extended=extended)
        self.take(b")")
        return out

    def _multipart(self, *, extended: bool):
        parts = []
        while self.peek(b"("):
            parts.append(self.body(extended=extended))
        self.take(b" ")
        out = {"parts": parts, "subtype": self.string().lower()}
        if extended:
            self.take(b" ")
            out["params"] = self.params()
            out["extension"] = self.extension()
        return out

    def _single(self, *, extended: bool):
        kind = self.string().lower()
        self.take(b" ")
        out = {"type": kind, "subtype": self.string().lower()}
        self.take(b" ")
        out["params"] = self.params()
        self.take(b" ")
        out["id"] = self.nstring()
        self.take(b" ")
        out["description"] = self.nstring()
        self.take(b" ")
        out["encoding"] = self.string()
        self.take(b" ")
        out["octets"] = self.number()
        if kind == b"text":
            self.take(b" ")
            out["lines"] = self.number()
        elif (kind, out["subtype"]) == (b"message", b"rfc822"):
            self.take(b" ")
            out["envelope"] = self.envelope()
            self.take(b" ")
            out["body"] = self.body(extended=extended)
            self.take(b" ")
            out["lines"] = self.number()
        assert kind != b"multipart", "a multipart is not a single part"
        if extended:
            self.take(b" ")
            out["md5"] = self.nstring()
            out["extension"] = self.extension()
        return out


def read_envelope(data: bytes):
    reader = Reader(data)
    value = reader.envelope()
    reader.end()
    return value


def read_body(data: bytes, *, extended: bool):
    reader = Reader(data)
    value = reader.body(extended=extended)
    reader.end()
    return value

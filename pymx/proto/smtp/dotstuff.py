"""Dot transparency for DATA (RFC 5321 s. 4.5.2), chunk by chunk.

`DotDecoder` finds the end of the data and takes the stuffed dots out; `DotEncoder` puts them in. The end is
<CRLF>.<CRLF> and nothing else: a peer that also ended at <LF>.<LF> would see other messages than we do (SMTP
smuggling). Whether bare CR or LF are allowed in the data is for `pymx.proto.smtp.newlines` to say. The decoder holds
back at most 4 octets between chunks.
"""

from __future__ import annotations

_END = b"\r\n.\r\n"
_HELD_BACK = (b"\r\n.\r", b"\r\n.", b"\r\n", b"\r")  # beginnings of _END, longest first


class DotDecoder:
    """Fed with what the peer sends after 354. When `done`, `rest` holds what followed the end of the data."""

    __slots__ = ("_carry", "_started", "done", "rest")

    def __init__(self) -> None:
        self._carry = b"\r\n"  # the line end before the data counts: "." as the first line ends an empty message
        self._started = False
        self.done = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """The message octets that `data` completes."""
        data = self._carry + data
        end = data.find(_END)
        if end >= 0:
            self.done = True
            self.rest = data[end + 5 :]
            self._carry = b""
            data = data[: end + 2]
        else:
            self._carry = b""
            for held in _HELD_BACK:
                if data.endswith(held):
                    self._carry = held
                    data = data[: -len(held)]
                    break
        # RFC 5321 s. 4.5.2: a leading period of a line with other characters on it is deleted
        data = data.replace(b"\r\n.", b"\r\n")
        if data and not self._started:
            self._started = True
            return data[2:]
        return data


class DotEncoder:
    """Fed with a message in wire form; `finish` gives the end of the data, with the CRLF the message may lack."""

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        self._tail = b"\r\n"

    def feed(self, data: bytes) -> bytes:
        """`data` as it goes out."""
        if not data:
            return b""
        joined = self._tail + data
        stuffed = joined.replace(b"\r\n.", b"\r\n..")[len(self._tail) :]
        self._tail = joined[-2:]
        return stuffed

    def finish(self) -> bytes:
        return b".\r\n" if self._tail == b"\r\n" else _END

"""What a client sends: octets in, requests and lines out, unpacked on the way once COMPRESS is on."""

from __future__ import annotations

from pymx.imapd.compression import PIECE, BrokenStream, Compression
from pymx.proto.imap.receiver import Event, Receiver


class Incoming:
    """A receiver and the compression in front of it. Reading raises BrokenStream, lines LineTooLong."""

    __slots__ = ("compression", "receiver")

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self.compression: Compression | None = None

    def put(self, data: bytes) -> None:
        """Take what came from the network."""
        if self.compression is None:
            self.receiver.feed(data)
        else:
            self.compression.put(data)

    @property
    def waiting_octets(self) -> int:
        """Octets that came and were not asked for yet."""
        packed = 0 if self.compression is None else self.compression.waiting_octets
        return self.receiver.buffered_octets + packed

    def next_event(self) -> Event | None:
        event = self.receiver.next_event()
        while event is None and self._unpack():
            event = self.receiver.next_event()
        return event

    def next_line(self) -> bytes | None:
        line = self.receiver.next_line()
        while line is None and self._unpack():
            line = self.receiver.next_line()
        return line

    def logout_waits(self) -> bool:
        """Whether LOGOUT is among the commands that came and were not asked for yet."""
        try:
            while not (found := self.receiver.logout_waits()):
                if self.receiver.buffered_octets >= PIECE or not self._unpack():
                    break
        except BrokenStream:  # raised again when its turn comes
            return False
        return found

    def _unpack(self) -> bool:
        """Give the receiver more of what came compressed; whether there was any."""
        if self.compression is None:
            return False
        octets = self.compression.take()
        self.receiver.feed(octets)
        return bool(octets)

    def clear(self) -> None:
        """Forget everything received."""
        self.receiver.clear()

    def begin_compression(self) -> None:
        """What comes from now on is compressed; a client that has sent more already broke RFC 4978 s. 3."""
        self.receiver.clear()
        self.compression = Compression()

    def rest(self) -> None:
        """Nothing will happen for a while: give memory back."""
        if self.compression is not None:
            self.compression.rest()

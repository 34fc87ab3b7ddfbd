"""What may be wrong with what an IMAP client sent.

`ImapError`
  `Bad`   the command is not understood: tagged BAD (RFC 3501 s. 7.1.3)
  `No`    it is understood and refused: tagged NO, with a response code (RFC 5530)

Both carry text for the client; neither says anything that only the log should hear.
"""

from __future__ import annotations


class ImapError(Exception):
    """Any of the errors of this room."""


class Bad(ImapError):
    """A protocol error of the client; `code` is the response code without brackets, or empty."""

    def __init__(self, text: str, *, code: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.code = code


class No(ImapError):
    """A refusal; `code` is the response code without brackets, or empty."""

    def __init__(self, text: str, *, code: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.code = code

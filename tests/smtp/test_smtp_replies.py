"""The catalogue of replies."""

from __future__ import annotations

import re

import pytest

from pymx.proto.smtp import reply
from pymx.proto.smtp.reply import Reply

CATALOGUE = {name: value for name, value in vars(reply).items() if isinstance(value, Reply)}


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_reply_has_an_enhanced_code_of_its_class(name: str) -> None:
    """RFC 2034 s. 4: in all of class 2, 4 and 5 but the greeting and those to HELO and EHLO; RFC 3463 s. 2."""
    one = CATALOGUE[name]
    if one is reply.START_DATA:
        assert (one.code, one.enhanced) == (354, "")
        return
    assert re.fullmatch(r"[245]\.\d{1,3}\.\d{1,3}", one.enhanced)
    assert one.enhanced[0] == str(one.code)[0]
    assert one.wire() == f"{one.code} {one.enhanced} {one.text}\r\n".encode()
    assert len(one.wire()) <= 512  # RFC 5321 s. 4.5.3.1.5


@pytest.mark.parametrize(
    ("name", "code", "enhanced"),
    [
        ("UNKNOWN_RECIPIENT", 550, "5.1.1"),
        ("RELAY_DENIED", 550, "5.7.1"),
        ("MESSAGE_TOO_BIG", 552, "5.3.4"),
        ("BARE_NEWLINE", 554, "5.5.2"),
        ("SENDER_NOT_OWNED", 553, "5.7.1"),
        ("OVER_QUOTA", 452, "4.2.2"),
        ("STORAGE_FULL", 452, "4.3.1"),
        ("DIRECTORY_UNAVAILABLE", 451, "4.3.0"),
        ("ROUTING_LOOP", 554, "5.4.6"),
        ("REJECTED_BY_POLICY", 550, "5.7.1"),
        ("CANNOT_VRFY", 252, "2.5.0"),
        ("NOT_IMPLEMENTED", 502, "5.5.1"),
    ],
)
def test_what_peers_go_by(name: str, code: int, enhanced: str) -> None:
    assert (CATALOGUE[name].code, CATALOGUE[name].enhanced) == (code, enhanced)

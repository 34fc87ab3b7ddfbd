"""What adopt reads of others: a server's answers, doveconf's output, dovecot.index. Nothing in them may break it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymx.admin.dovecot import settings_from
from pymx.ms import dovecotindex
from pymx.ms.auditfiles import packed, uidlist_problems
from pymx.proto.imap.answers import Atom, Unreadable, Value, fetched, parse

ANSWERS: list[tuple[bytes, list[Value]]] = [
    (b"", []),
    (b"NIL", [None]),
    (b'"NIL" nil', [b"NIL", None]),
    (b'(a (b "c d") NIL)', [[b"a", [b"b", b"c d"], None]]),
    (b'"q \\"x\\" \\\\"', [b'q "x" \\']),
    (b"{5}\r\na b)( x", [b"a b)(", b"x"]),
    (b"~{2}\r\n\0\xff", [b"\0\xff"]),
    (b"()() 12", [[], [], b"12"]),
    (b"(\\Seen $Work)", [[b"\\Seen", b"$Work"]]),
]
UNREADABLE = [b"(", b")", b"(a", b'"open', b"{9}\r\nshort", b"a\r\nb"]


@pytest.mark.parametrize(("data", "values"), ANSWERS)
def test_values_of_an_answer(data: bytes, values: list[Value]) -> None:
    """RFC 3501 s. 4: atoms, quoted strings, literals, lists, NIL."""
    assert parse(data) == values


def test_an_atom_is_not_a_string() -> None:
    """12 is a number, "12" is not."""
    number, text = parse(b'12 "12"')
    assert isinstance(number, Atom)
    assert not isinstance(text, Atom)


@pytest.mark.parametrize("data", UNREADABLE)
def test_what_no_server_may_answer_is_refused(data: bytes) -> None:
    """With our own error."""
    with pytest.raises(Unreadable):
        parse(data)


@given(st.binary(max_size=60) | st.text('(){}"\\ 1\r\nNILa', max_size=40).map(str.encode))
def test_any_octets_are_values_or_unreadable(data: bytes) -> None:
    """Never anything but our error."""
    for read in (parse, fetched):
        try:
            read(data)
        except Unreadable:
            pass


def _written(value: Value) -> bytes:
    if value is None:
        return b"NIL"
    if isinstance(value, list):
        return b"(" + b" ".join(map(_written, value)) + b")"
    return b"{%d}\r\n%s" % (len(value), value)


@given(st.recursive(st.none() | st.binary(max_size=10), lambda inner: st.lists(inner, max_size=4), max_leaves=12))
def test_what_is_written_is_read_again(value: Value) -> None:
    """parse ∘ write = id."""
    assert parse(_written(value)) == [value]


def test_fetch_items_have_names_in_upper_case() -> None:
    """As pairs."""
    assert fetched(b"(UID 7 Flags (\\Seen) rfc822.size 12)") == {
        b"UID": b"7", b"FLAGS": [b"\\Seen"], b"RFC822.SIZE": b"12",
    }  # fmt: skip


def test_settings_of_dovecot_2_3() -> None:
    """`doveconf -n`: namespace, location with options, plugins, home."""
    settings = settings_from("""# 2.3.19.1 (9b53102964): /etc/dovecot/dovecot.conf
base_dir = /run/dovecot2
mail_location = maildir:/var/vmail/%d/%n:LAYOUT=fs:CONTROL=/var/control/%d/%n
mail_plugins = " quota zlib"
namespace inbox {
  inbox = yes
  location =
  mailbox Drafts {
    special_use = \\Drafts
  }
  prefix = INBOX.
  separator = .
}
userdb {
  args = uid=vmail gid=vmail home=/home/%n
  driver = static
}
""")
    assert settings.location.layout == "fs"
    assert settings.location.control == "/var/control/%d/%n"
    assert (settings.prefix, settings.separator, settings.base_dir) == ("INBOX.", ".", "/run/dovecot2")
    assert settings.home == "/home/%n"


def test_settings_of_dovecot_2_4() -> None:
    """mail_driver and mail_path; the separator that goes with the layout."""
    settings = settings_from("""mail_driver = maildir
mail_path = /var/vmail/%{user | domain}/%{user | username}
mailbox_list_layout = fs
mail_control_path = /c
namespace inbox {
  inbox = yes
}
""")
    assert (settings.location.kind, settings.location.layout, settings.location.control) == ("maildir", "fs", "/c")
    assert (settings.prefix, settings.separator) == ("", "/")


@given(st.text(alphabet='ab={} \n#"', max_size=80))
def test_any_output_of_doveconf_is_survived(text: str) -> None:
    """It is somebody else's."""
    settings_from(text)


@given(st.binary(max_size=400))
def test_any_dovecot_index_is_survived(data: bytes) -> None:
    """None, or a header; with a right beginning as well."""
    dovecotindex.parse(data)
    dovecotindex.parse(b"\x07\x03\x78\x00\x90\x00\x00\x00" + data)
    start = b"\x07\x03\x78\x00\xf0\x00\x00\x00" + b"\0" * 16 + b"\1\0\0\0\2\0\0\0" + b"\0" * 88
    dovecotindex.parse(start + data.ljust(120, b"\0"))


@given(st.binary(max_size=200))
def test_any_uidlist_is_examined(data: bytes) -> None:
    """Problems, never an exception."""
    list(uidlist_problems(data))
    list(uidlist_problems(b"3 V1 N2 G" + b"a" * 32 + b"\n" + data))


def test_packed_messages_are_known_by_their_first_octets() -> None:
    """Magic numbers of Dovecot's zlib and mail_crypt plugins."""
    assert packed(b"\x1f\x8b\x08\0") == "gzip"
    assert packed(b"\x28\xb5\x2f\xfd") == "zstd"
    assert packed(b"CRYPTED\x03\x07\x02") == "encrypted"
    assert packed(b"From: a@example.test") == ""

"""Tag lists (RFC 6376 s. 3.2), as signatures, key records and ARC fields have them.

Reading takes time linear in the length. White space inside values that may be folded is the caller's to remove. Raises
TagError for what is no tag list; its text may be shown to anybody.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping

from pymx.mail.address import AddressError, domain_to_ascii, parse_domain

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")
_WSP = " \t\r\n"
_STRIP_WSP = str.maketrans("", "", _WSP)


class TagError(ValueError):
    """The text is not a tag list, or a tag's value is not what it must be."""


def parse_tags(data: bytes, *, gaps: bool = False) -> dict[str, str]:
    """The tags with their values, white space around them removed. UTF-8 is allowed (RFC 8616).

    `gaps`: let an empty place between two semicolons pass, as in key records typed by hand.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise TagError("not UTF-8") from None
    tags: dict[str, str] = {}
    parts = text.split(";")
    if not parts[-1].strip(_WSP):
        parts.pop()
    for part in parts:
        if gaps and not part.strip(_WSP):
            continue
        name, equals, value = part.partition("=")
        name = name.strip(_WSP)
        if not equals or not _NAME.match(name):
            raise TagError("not a list of tags")
        if name in tags:
            # s. 3.2: "Tags with duplicate names MUST NOT occur within a single tag-list"
            raise TagError(f"tag {name}= occurs twice")
        tags[name] = value.strip(_WSP)
    return tags


def unfolded(value: str) -> str:
    """A value without any white space."""
    return value.translate(_STRIP_WSP)


def decode_base64(value: str, tag: str) -> bytes:
    """The octets of a base64 value, white space allowed anywhere."""
    try:
        return base64.b64decode(unfolded(value).encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise TagError(f"{tag}= is not base64") from None


def domain(tags: Mapping[str, str], tag: str) -> str:
    """A domain name in A-labels, lower case."""
    return domain_name(tags.get(tag, ""), tag)


def domain_name(text: str, tag: str) -> str:
    try:
        name = domain_to_ascii(parse_domain(text))
    except AddressError:
        name = "["
    if name.startswith("["):
        raise TagError(f"{tag}= is not a domain name")
    return name


def words(value: str) -> list[str]:
    """A colon-separated list, lower case."""
    return [w for w in unfolded(value).lower().split(":") if w]


def number(tags: dict[str, str], tag: str, digits: int = 12) -> int | None:
    """A decimal tag of at most `digits` digits, or None when it is not there."""
    value = tags.get(tag)
    if value is None:
        return None
    if not value.isascii() or not value.isdigit() or len(value) > digits:
        raise TagError(f"{tag}= is not a number")
    return int(value)

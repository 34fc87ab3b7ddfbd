"""MAILBOXID and EMAILID (RFC 8474), made of GUIDs: they stay when a mailbox is renamed and when a message is copied."""

from __future__ import annotations

import hashlib


def mailbox_id(guid: str) -> str:
    """A mailbox's GUID as MAILBOXID (RFC 8474)."""
    return "F" + guid


def email_id(guid: str) -> str:
    """A message's GUID as EMAILID: of the characters and the length that RFC 8474 allows."""
    return "M" + hashlib.blake2b(guid.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()

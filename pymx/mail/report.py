"""Which messages are reports about mail: DMARC aggregate (RFC 7489 s. 7.2.1.1) and TLS (RFC 8460 s. 5.3).

Told from the header alone, so it costs little and anybody can make a message look like one: it decides what is looked
into, and what no report is made about, never what is believed. PURE.
"""

from __future__ import annotations

import re

from pymx.mail.header import first

_SUBJECT = re.compile(rb"report[ -]?domain:\s*\S", re.IGNORECASE)
_TLS = re.compile(rb"multipart/report\b.*\breport-type\s*=\s*\"?tlsrpt\b", re.IGNORECASE | re.DOTALL)
_PAYLOAD = re.compile(rb"application/tlsrpt\+(?:gzip|json)\b", re.IGNORECASE)
_MAX_VALUE = 2048


def is_report(head: bytes) -> bool:
    """Does the header block say that the message is such a report?"""
    if is_tls_report(head) or first(head, "tls-report-domain") is not None:
        return True
    subject = first(head, "subject")
    return subject is not None and _SUBJECT.search(subject.value[:_MAX_VALUE]) is not None


def is_tls_report(head: bytes) -> bool:
    """Is it a TLS report by its media type (RFC 8460 s. 5.3)?"""
    media_type = first(head, "content-type")
    if media_type is None:
        return False
    value = media_type.value[:_MAX_VALUE]
    return _TLS.match(value) is not None or _PAYLOAD.match(value) is not None

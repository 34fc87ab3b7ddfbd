"""dnspython without what only DNS over HTTPS needs."""

from __future__ import annotations

import contextlib


def leave_out_https() -> None:
    """Keep dnspython from importing an HTTP client, where one is installed: 5 MiB in every process for a transport
    that the server does not use. Call it before `dns.resolver` is imported for the first time."""
    # the door that dnspython has for this is not a public one; without it everything works, only larger
    with contextlib.suppress(ImportError, AttributeError):
        import dns._features

        dns._features.force("doh", False)

"""The MTA-STS policy of our own domains as text, and the id that announces it (RFC 8461 s. 3). PURE.

The policy is served by `pymx.web`, its id belongs into the TXT record of `_mta-sts.<domain>`. The id is made from the
text, so that both change together: other servers fetch a policy again only when its id is another one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def policy_text(mode: str, mx: Sequence[str], max_age_s: int) -> str:
    """The body of https://mta-sts.<domain>/.well-known/mta-sts.txt (RFC 8461 s. 3.2)."""
    # "mx … required, unless mode is none"
    hosts = [] if mode == "none" else [f"mx: {host}" for host in mx]
    return "\r\n".join(["version: STSv1", f"mode: {mode}", *hosts, f"max_age: {max_age_s}", ""])


def policy_id(text: str) -> str:
    """1 to 32 letters and digits (RFC 8461 s. 3.1)."""
    return hashlib.sha256(text.encode()).hexdigest()[:20]

"""What to do about a reply: remote servers' refusals, recognised by their codes and words, in one plain sentence each.

The first row that fits counts. What providers say is from their own pages (Google: "SMTP error reference", Microsoft:
"NDR error codes", Yahoo: "SMTP error codes"); the general codes are RFC 3463's.
"""

from __future__ import annotations

import re

_PROVE = "Check with: pymxctl dns check."

_TABLE: tuple[tuple[str, str], ...] = (
    # providers first: they know best
    (
        r"[45]\.7\.(26|27|30|515)\b",
        "The provider found neither a valid SPF nor a DKIM result for the sender's domain. Publish the SPF, DKIM and "
        f"DMARC records of the domain. {_PROVE}",
    ),
    (
        r"[45]\.7\.(23|25)\b",
        "The address that this server sends from has no PTR record, or its name does not lead back to it. Set reverse "
        "DNS at the hoster to the name in `hostname`.",
    ),
    (r"[45]\.7\.29\b", "The provider wants TLS and the connection had none. See [outbound] tls settings of the route."),
    (
        r"4\.7\.28|5\.7\.28|unusual rate|rate.?limit|too many (messages|connections)|4\.7\.650|RP-00[123]|\bTS01\b",
        "The provider slows down mail from this address because of its amount or of complaints. It is tried again by "
        "itself; send less at a time, and look for a hacked account if this is not your own mail.",
    ),
    (
        r"\bTSS?0?4\b|\[TSS04\]|TSS0\d",
        "Yahoo defers mail because of complaints or unexpected volume from this address. It is tried again by itself; "
        "if it goes on for a day, fill in the form at https://senders.yahooinc.com.",
    ),
    (
        r"S3140|S3150|S775|5\.7\.60[67]|550 5\.7\.1 Unfortunately, messages from|blocked using (S3|FBLW)",
        "Microsoft blocks the address or the network of this server. Ask for its removal at "
        "https://olcsupport.office.com (Outlook.com) or https://sender.office.com (Microsoft 365).",
    ),
    (
        r"5\.7\.511|5\.7\.708|access denied, banned sender",
        "Microsoft has banned the address of this server. Forward the bounce to delist@microsoft.com.",
    ),
    (
        r"5\.4\.1 .*access denied|5\.4\.1 recipient address rejected",
        "The recipient does not exist at Microsoft 365. Check the address.",
    ),
    (
        r"spamhaus|zen\.|\bpbl\b|\bxbl\b|\bsbl\b",
        "The address is on a list of Spamhaus: see https://check.spamhaus.org.",
    ),
    (
        r"barracuda|spamcop|sorbs|uceprotect|blocklist|blacklist|\bdnsbl\b|\brbl\b",
        "The address of this server is on the blocklist that the reply names. Look it up there and ask for removal.",
    ),
    (
        r"grey.?list|gr[ae]y listed|try again (later|in)|4\.7\.1 .*(later|again|wait)|\b4\.7\.1\b",
        "The server asks to try again later (greylisting does that with every new sender): nothing to do.",
    ),
    (
        r"dmarc",
        "The mail did not pass DMARC: neither SPF nor DKIM authenticates the domain in From, or it was forwarded. "
        + _PROVE,
    ),
    (r"\bspf\b", f"The sender's SPF record does not allow this server. {_PROVE}"),
    (r"\bdkim\b", f"The DKIM signature was not accepted. {_PROVE}"),
    (r"\bspam\b|content rejected|message content|5\.7\.1 .*(junk|bulk)", "The content was taken for spam."),
    # the general codes
    (
        r"5\.1\.1|5\.1\.0|user unknown|no such user|mailbox (unavailable|not found)|does not exist|recipient rejected",
        "The address does not exist there. Check its spelling.",
    ),
    (r"5\.1\.2|5\.4\.4", "The domain of the address can't be found or takes no mail. Check its spelling."),
    (r"5\.1\.10", "The domain says that it takes no mail at all (null MX)."),
    (r"[45]\.1\.8|sender address rejected", "The sender's domain was not accepted: does it have an MX or A record?"),
    (r"5\.1\.6|5\.2\.1|account (is )?(disabled|inactive)", "The mailbox has moved or is closed."),
    (
        r"[45]\.2\.2|quota|mailbox (is )?full|over ?quota",
        "The recipient's mailbox is full. Only its owner can change that.",
    ),
    (r"[45]\.2\.3|[45]\.3\.4|too large|exceeds .*size", "The message is larger than the recipient's server takes."),
    (r"4\.2\.1", "The mailbox can't take mail at the moment; it is tried again by itself."),
    (r"[45]\.3\.1|insufficient (system )?storage|disk", "The remote server has no room; it is tried again by itself."),
    (
        r"4\.4\.1|4\.4\.2|connect|timed? ?out|lost",
        "The remote server could not be reached; it is tried again by itself.",
    ),
    (r"4\.4\.3|dns", "DNS did not answer for the domain; it is tried again by itself."),
    (r"[45]\.4\.6|loop", "The message goes in circles: look at the aliases and forwards that it went through."),
    (r"5\.4\.7|4\.4\.7|expired", "It was tried for as long as the settings allow ([outbound] lifetime_s)."),
    (r"5\.6\.7", "The address has letters that the remote server can't take (it has no SMTPUTF8)."),
    (r"[45]\.7\.(10|4|11)\b|must issue a STARTTLS", "The remote server takes mail over TLS only."),
    (r"[45]\.7\.[58]|authentication (required|failed)", "The next hop wants a login, or the one given is wrong."),
    (
        r"relay(ing)? (access )?(denied|not permitted)|5\.7\.1 .*relay",
        "That server is not responsible for the domain: its MX record leads to the wrong host.",
    ),
    (r"5\.7\.1\b|5\.7\.0\b|550 .*(policy|denied|refused|rejected|blocked)", "Refused by the other side's policy."),
    (r"^4\d\d|\b4\.\d+\.\d+", "A temporary refusal: it is tried again by itself."),
)
_RULES = tuple((re.compile(pattern, re.IGNORECASE), text) for pattern, text in _TABLE)


def advice(reply: str) -> str:
    """One or two sentences for the administrator; "" for a reply that says nothing known, and for a success."""
    if not reply or reply.startswith("2"):
        return ""
    return next((text for pattern, text in _RULES if pattern.search(reply)), "")

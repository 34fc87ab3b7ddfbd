"""SPF check_host() (RFC 7208 s. 4): pyspf's evaluation, our name resolution.

pyspf is synchronous. It runs against a table of DNS answers; what it misses there is looked up, and it runs again,
until nothing is missing (two runs on average, one more for each step that depends on an answer). No thread waits for
DNS, and questions that don't depend on each other (the addresses of all MX hosts) are asked together.

pyspf catches everything at two places (bare `except:` around exp= and in its harsh mode), so the exception that ends a
run is not trusted: a run counts only when it has asked nothing that is not in the table.

Results are those of s. 2.6. A record that pyspf chokes on is a permerror. Nothing is raised.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pymx.mail.address import Address, AddressError
from pymx.mailauth.questions import Questions, unknown
from pymx.mailauth.spf.replay import Answers, Evaluation, Limits, Question, Sender, evaluate
from pymx.resolver.answer import NoRecords, NoSuchDomain, TemporaryDnsError

Identity = Literal["mailfrom", "helo"]
MAX_EXPLANATION = 300  # characters of exp= text: it goes into a reply
_WORDS = {
    "pass": "domain of {who} designates {ip} as permitted sender",
    "fail": "domain of {who} does not designate {ip} as permitted sender",
    "softfail": "transitioning domain of {who} does not designate {ip} as permitted sender",
    "neutral": "{ip} is neither permitted nor denied by domain of {who}",
    "none": "domain of {who} does not designate permitted sender hosts",
    "permerror": "the SPF record of domain {who} can't be used",
    "temperror": "error in processing during lookup of {who}",
}


@dataclass(frozen=True, slots=True)
class SpfResult:
    """`domain` is the one whose record was asked, A-labels, lower case; `explanation` says why, in the domain's own
    words (exp=, s. 6.2) if it failed and has some."""

    result: str
    identity: Identity
    domain: str
    explanation: str = ""


async def check(
    resolver: Questions,
    *,
    ip: str,
    mail_from: Address | None,
    helo: str,
    receiver: str = "",
    limits: Limits | None = None,
) -> SpfResult:
    """Check MAIL FROM, or the HELO name when the reverse-path is null (s. 2.4)."""
    identity: Identity = "mailfrom" if mail_from and mail_from.domain else "helo"
    try:
        who = _sender(ip, mail_from, helo, receiver)
    except ValueError as e:  # AddressError too
        return SpfResult("none", identity, "", str(e))
    domain = who.domain
    if "." not in domain or domain.startswith("["):
        # s. 4.3: "not a multi-label domain name": none, and nobody needs to be asked
        return SpfResult("none", identity, domain, "not a fully qualified domain name")
    limits = limits or Limits()
    answers: Answers = {}
    work_s = 0.0
    for _ in range(limits.runs):
        started = time.thread_time()
        done = evaluate(answers, who, limits)
        work_s += time.thread_time() - started
        if isinstance(done, Evaluation):
            return SpfResult(done.result, identity, domain, _printable(done.explanation)[:MAX_EXPLANATION])
        if work_s > limits.work_s:
            return SpfResult("permerror", identity, domain, "the records take too much work")
        answers.update(await _ask(resolver, done))
    return SpfResult("permerror", identity, domain, "too many DNS lookups")


def received_spf(result: SpfResult, *, ip: str, mail_from: Address | None, helo: str, receiver: str) -> str:
    """The value of a Received-SPF field (s. 9.1), for `build_field`."""
    who = (str(mail_from) if mail_from else "postmaster@" + result.domain) if result.identity == "mailfrom" else helo
    comment = f"{receiver}: " + _WORDS[result.result].format(who=who, ip=ip)
    pairs = [("client-ip", ip), ("envelope-from", str(mail_from) if mail_from else ""), ("helo", helo)]
    pairs += [("receiver", receiver), ("identity", result.identity)]
    return f"{result.result} ({_comment(comment)}) " + "; ".join(f"{k}={_quoted(v)}" for k, v in pairs)


async def _ask(resolver: Questions, questions: Iterable[Question]) -> Answers:
    asked = list(questions)
    if len(asked) == 1:  # as it is mostly: no task needed
        return {asked[0]: await _ask_one(resolver, *asked[0])}
    found = await asyncio.gather(*(_ask_one(resolver, *question) for question in asked))
    return dict(zip(asked, found, strict=True))


async def _ask_one(resolver: Questions, name: str, rdtype: str) -> tuple[tuple[object, ...], ...] | str:
    """The records; none when there are none; the reason when nobody knows."""
    try:
        # in a name made of macros a backslash is an octet like others, but not in the text form of names
        return (await resolver.resolve(name.replace("\\", "\\\\"), rdtype)).records
    except (NoSuchDomain, NoRecords):
        return ()
    except TemporaryDnsError as e:
        return unknown(e)


def _sender(ip: str, mail_from: Address | None, helo: str, receiver: str) -> Sender:
    """The arguments of check_host(): the local part is "postmaster" where there is none (s. 4.3)."""
    name = _name(helo)
    if mail_from and mail_from.domain:
        return Sender(_client(ip), mail_from.local_part or "postmaster", mail_from.ascii_domain, name, receiver)
    return Sender(_client(ip), "postmaster", name, name, receiver)


def _name(helo: str) -> str:
    try:
        return Address("", helo.rstrip(".")).ascii_domain
    except AddressError:
        return helo.lower()


def _client(ip: str) -> str:
    address = ipaddress.ip_address(ip)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(address)


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def _comment(text: str) -> str:
    return "".join("?" if c in "()\\" else c for c in _printable(text))


def _quoted(text: str) -> str:
    if text and all(c.isalnum() or c in "-._" for c in text):
        return text
    return '"' + _printable(text).replace("\\", "\\\\").replace('"', '\\"') + '"'

"""`pymxctl doctor --prove ADDRESS`: signed probes go out through the real queue, and the answer comes back.

One message from every address that we send from. It is waited for in two ways: in a mailbox of one's own elsewhere,
over IMAP (`--imap-url`), where the other server's Authentication-Results are in its header; or, without that, as the
answer of a reflector in the mailbox here that the probes come from, where they are quoted in its text. A delivery that
fails is told at once, in the other server's words.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import email.policy
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.parser import BytesParser
from pathlib import Path

from pymx.admin import identity
from pymx.admin.accounts import registry
from pymx.admin.context import Context, CtlError, Exit
from pymx.admin.dns import open_resolver
from pymx.admin.elsewhere import Elsewhere, MailboxError
from pymx.admin.health.finding import Finding, Severity, as_facts, fail, info, ok, warn, worst
from pymx.admin.health.present import show
from pymx.events.keeping import store_path
from pymx.events.store import EventStore, StoreError
from pymx.mail.address import AddressError, parse_address
from pymx.mail.advice import advice
from pymx.mail.authreading import Judgements, find_in_text, read
from pymx.mail.date import format_date
from pymx.mail.header import build_field
from pymx.resolver.answer import DnsError

_LOOK_EVERY_S = 2.0
_FOLDERS = ("new", "cur", ".Junk/new", ".Junk/cur")
_METHODS = ("spf", "dkim", "dmarc")
_ANSWER = "the answer"
_MAX_ANSWER_OCTETS = 1 << 20


@dataclass(slots=True)
class Probe:
    """One message and what became of it. `verdict`, `reply` and `tls` are of our own delivery."""

    source: str
    token: str
    queue_id: str = ""
    verdict: str = ""
    reply: str = ""
    tls: str = ""
    arrived: bool = False
    mailbox: str = ""
    judgements: Judgements | None = None
    took_s: float = 0.0
    findings: list[Finding] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        return self.arrived or self.verdict == "failed"


def prove(args: argparse.Namespace, context: Context, password: str) -> int:
    try:
        parse_address(args.prove)
    except AddressError as e:
        raise CtlError(f"{args.prove}: {e}", Exit.USAGE) from None
    sender = args.sender or _some_account(context)
    elsewhere = _open(args, password)
    try:
        sources, findings = _sources(context, args.prove)
        probes = [_send(context, sender, args.prove, source) for source in sources]
        if not context.json:
            print(
                f"{len(probes)} sent from {sender} to {args.prove}; waiting for the answer (at most {args.wait:.0f} s)"
            )
        _wait(context, probes, sender, elsewhere, args.wait)
    finally:
        if elsewhere is not None:
            elsewhere.close()
    findings += [finding for probe in probes for finding in _judge(probe, args)]
    bad = worst(findings) >= Severity.WARN
    if context.json:
        context.out.details({"ok": not bad, "findings": [as_facts(f) for f in findings]})
    else:
        show(findings, everything=True, about="probes")
    return Exit.FAILED if bad else Exit.OK


def _sources(context: Context, to: str) -> tuple[list[str], list[Finding]]:
    """Every address of ours from which the other server can be reached, and what is said of the others.

    "" is the system's choice, where a router translates addresses or a smarthost sends.
    """
    domain = parse_address(to).ascii_domain
    if any(route.domain in ("*", domain) for route in context.config.outbound.route):
        return [""], []
    ours = identity.sending_addresses(context.config)
    theirs = asyncio.run(_addresses(context, domain))
    usable = [a for a in ours if not theirs or any((":" in a) == (":" in t) for t in theirs)]
    unproven = [
        info(f"prove:{a}", f"nothing is proven of {a}: {domain} has no mail server that could be reached from it")
        for a in ours
        if a not in usable
    ]
    return usable or [""], unproven


async def _addresses(context: Context, domain: str) -> list[str]:
    """Those of the domain's mail servers; none when that can't be told, and the delivery will say why."""
    resolver = open_resolver(context)
    try:
        hosts = [host for _, host in await resolver.mx(domain)]
    except DnsError:
        hosts = [domain]
    found = []
    for host in hosts:
        with contextlib.suppress(DnsError):
            found += await resolver.addresses(host)
    return found


def _some_account(context: Context) -> str:
    postmaster = context.config.accounts.postmaster
    with registry(context) as accounts:
        users = [user.email for user in accounts.users()]
    if postmaster in users:
        return postmaster
    if not users:
        raise CtlError("there is no account that the probe could come from; pymxctl user add")
    return users[0]


def _open(args: argparse.Namespace, password: str) -> Elsewhere | None:
    if not args.imap_url:
        return None
    if not password:
        raise CtlError("--imap-url needs --imap-password-file", Exit.USAGE)
    try:
        return Elsewhere(args.imap_url, password)
    except MailboxError as e:
        raise CtlError(str(e), Exit.USAGE if e.usage else Exit.UNAVAILABLE) from None


def _send(context: Context, sender: str, to: str, source: str) -> Probe:
    probe = Probe(source, secrets.token_hex(8))
    answer = context.control.call(
        "send",
        {
            "to": to,
            "mail_from": sender,
            "source_address": source,
            "message": base64.b64encode(_message(context, sender, to, probe)).decode(),
        },
    )
    if not isinstance(answer, dict):
        raise CtlError(f"pymx answered {answer!r}; is it of another version than pymxctl?")
    probe.queue_id = str(answer["queue_id"])
    if not answer["signed"]:
        domain = sender.rpartition("@")[2]
        text, remedy = f"the probe was not signed: {domain} has no DKIM key", f"pymxctl dkim generate {domain}"
        why = "Google, Yahoo and Microsoft refuse unsigned mail or file it as junk"
        probe.findings.append(fail(f"prove:{source}:unsigned", text, remedy, why))
    return probe


def _message(context: Context, sender: str, to: str, probe: Probe) -> bytes:
    now = time.time()
    domain = sender.rpartition("@")[2]
    text = (
        f"This is a test of the mail server {context.config.hostname}: does its mail arrive,\r\n"
        f"and is it believed? Nobody need answer it. {probe.token}\r\n"
    )
    fields = [
        build_field("From", sender),
        build_field("To", to),
        build_field("Subject", f"Test of {context.config.hostname} {probe.token}"),
        build_field("Date", format_date(now)),
        build_field("Message-ID", f"<probe.{probe.token}@{domain}>"),
        build_field("MIME-Version", "1.0"),
        build_field("Content-Type", "text/plain; charset=us-ascii"),
    ]
    return b"".join(fields) + b"\r\n" + text.encode("ascii")


# --- waiting


def _wait(context: Context, probes: list[Probe], sender: str, elsewhere: Elsewhere | None, wait_s: float) -> None:
    began = time.monotonic()
    while True:
        for probe in probes:
            if not probe.is_over:
                _look(context, probe, sender, elsewhere)
                probe.took_s = time.monotonic() - began
        left_s = wait_s - (time.monotonic() - began)
        if all(probe.is_over for probe in probes) or left_s <= 0:
            return
        time.sleep(min(_LOOK_EVERY_S, left_s))


def _look(context: Context, probe: Probe, sender: str, elsewhere: Elsewhere | None) -> None:
    _follow(context, probe)
    if elsewhere is not None:
        try:
            found = elsewhere.find(probe.token)
        except MailboxError as e:
            raise CtlError(str(e), Exit.UNAVAILABLE) from None
        if found is not None:
            probe.arrived, probe.mailbox = True, found.mailbox
            probe.judgements = _of_header(found.header)
        return
    for answer in _answers(context, sender, probe.token):
        probe.arrived, probe.mailbox = True, _ANSWER
        probe.judgements = find_in_text(_text(answer))
        return


def _follow(context: Context, probe: Probe) -> None:
    """How our own delivery went so far."""
    store = EventStore(store_path(Path(context.config.data_dir)))
    try:
        store.open_to_read()
        events = store.of_messages([probe.queue_id])
    except (StoreError, OSError):
        return  # then only the answer says something
    finally:
        store.close()
    for event in events:
        if event.name == "delivery_attempt":
            probe.verdict, probe.reply, probe.tls = event.text("verdict"), event.text("reply"), event.text("tls")


def _answers(context: Context, sender: str, token: str) -> Iterator[EmailMessage]:
    """Messages in the sender's own mailbox that quote the probe."""
    local_part, _, domain = sender.partition("@")
    home = Path(context.config.mail.root) / domain.lower() / local_part.lower()
    for folder in _FOLDERS:
        for path in (home / folder).glob("*"):
            try:
                if path.stat().st_mtime < time.time() - 3600:
                    continue
                with path.open("rb") as f:
                    data = f.read(_MAX_ANSWER_OCTETS)
            except OSError:
                continue  # it was moved meanwhile
            if token.encode() in data:
                yield BytesParser(policy=email.policy.default).parsebytes(data)


def _of_header(header: bytes) -> Judgements | None:
    """What the server that the mailbox is at says: the field on top."""
    message = BytesParser(policy=email.policy.compat32).parsebytes(header)
    found = [read(str(value)) for value in message.get_all("Authentication-Results") or ()]
    return next((judgements for judgements in found if judgements.results), None)


def _text(message: EmailMessage) -> str:
    """All text of a message, attached headers of the original included."""
    parts = []
    for part in message.walk():
        if part.get_content_maintype() == "text" or part.get_content_type() == "message/rfc822-headers":
            parts.append((part.get_payload(decode=True) or b"").decode("utf-8", "replace"))  # type: ignore[union-attr]
        elif part.get_content_type() == "message/rfc822":
            parts.append(str(part.get_payload(0)))
    return "\n".join(parts)


# --- what it means


def _judge(probe: Probe, args: argparse.Namespace) -> Iterator[Finding]:
    yield from probe.findings
    whence = f"from {probe.source}" if probe.source else "from here"
    check = f"prove:{probe.source or 'any'}"
    if not probe.arrived:
        yield _lost(probe, check, whence, args)
        return
    tls = f" over {probe.tls}" if probe.tls else ""
    yield ok(f"{check}:arrival", f"the probe {whence} arrived within {probe.took_s:.0f} s{tls}")
    if probe.verdict == "delivered" and not probe.tls:
        text = f"the probe {whence} went in the clear: the other server offers no TLS, or ours could not use it"
        yield warn(f"{check}:tls", text, f"pymxctl trace {probe.queue_id}", "who listens on the way can read it")
    if probe.mailbox not in ("INBOX", _ANSWER):
        text = f"the probe {whence} was filed to {probe.mailbox}"
        yield warn(
            f"{check}:junk",
            text,
            "mark it as no junk; new addresses get better with time: [outbound] warm_up_since",
            "other mail goes there too",
        )
    if probe.judgements is None:
        text = f"the answer to the probe {whence} does not say whether SPF, DKIM and DMARC passed"
        yield warn(
            f"{check}:results",
            text,
            "use a mailbox whose server writes Authentication-Results (--imap-url)",
            "whether our mail is believed is not proven",
        )
        return
    for method in _METHODS:
        yield _result(probe, probe.judgements, check, whence, method)


def _result(probe: Probe, judgements: Judgements, check: str, whence: str, method: str) -> Finding:
    name, who = method.upper(), judgements.server or "the other server"
    found = judgements.of(method)
    if judgements.passes(method):
        return ok(f"{check}:{method}", f"{who} says that {name} passes {whence}")
    remedy = {
        "spf": f"the SPF record must let {probe.source or 'our address'} send",
        "dkim": "compare the published key with ours",
        "dmarc": "SPF or DKIM must pass for the domain in From",
    }[method]
    if not found:
        return warn(
            f"{check}:{method}",
            f"{who} says nothing of {name} for the probe {whence}",
            f"{remedy}: pymxctl dns check",
            "whether our mail is believed is not proven",
        )
    said = ", ".join(sorted({judgement.result for judgement in found}))
    return fail(
        f"{check}:{method}",
        f"{who} says {name} {said} for the probe {whence}",
        f"{remedy}: pymxctl dns check",
        "others take our mail for forged or unproven, and refuse it or file it as junk",
    )


def _lost(probe: Probe, check: str, whence: str, args: argparse.Namespace) -> Finding:
    trace = f"pymxctl trace {probe.queue_id}"
    if probe.verdict == "failed":
        return fail(
            check,
            f"the probe {whence} was refused: {probe.reply}",
            advice(probe.reply) or trace,
            "other mail to it is refused as well",
        )
    if probe.verdict == "deferred":
        text = f"the probe {whence} is put off by the other server: {probe.reply}"
        return fail(
            check, text, advice(probe.reply) or f"it is tried again; {trace}", "other mail to it is late as well"
        )
    if probe.verdict == "delivered":
        where = "in the mailbox" if args.imap_url else "as an answer"
        text = f"the probe {whence} was taken, but did not appear {where} within {args.wait:.0f} s"
        return fail(
            check, text, "look into the folders there by hand; --wait 900 waits longer", "it may be where nobody looks"
        )
    return fail(
        check,
        f"the probe {whence} was not tried within {args.wait:.0f} s",
        f"pymxctl queue list; {trace}",
        "other mail waits as well",
    )

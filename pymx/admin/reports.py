"""pymxctl reports list|show|send: what others report about our domains, and what we report about theirs.

Reads the reports database itself, so it works while the server is stopped; only `send` needs it to run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import msgspec

from pymx.admin.context import Context, CtlError, Exit
from pymx.mailauth.dkim.sign import Signer
from pymx.reports.aggregate import AggregateReport
from pymx.reports.error import NotTaken, StoreUnavailable
from pymx.reports.parcels import tls_policies
from pymx.reports.received import Received
from pymx.reports.reporter import Planned, Reporter
from pymx.reports.store import DAY_S, Store
from pymx.reports.summary import Source, sources, tls_advice, tls_summaries
from pymx.reports.tlsrpt import TlsReport
from pymx.resolver.answer import DnsError
from pymx.resolver.resolver import Resolver

_MAX_REPORTS = 5_000
_NAMED = 50  # sources of a domain whose names are looked up
_NAMES_S = 5.0
_SEND_S = 600.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    listing = verbs.add_parser("list", help="the reports that came, newest first")
    listing.add_argument("domain", metavar="DOMAIN", nargs="?", default="", help="only about this domain")
    listing.add_argument("--days", type=int, default=30, help="how far back (default 30)")
    listing.add_argument("--kind", choices=["dmarc", "tls"], default="")
    listing.add_argument("--sent", action="store_true", help="the reports that we sent, or could not send")
    show = verbs.add_parser("show", help="what they say: who sends as your domains, how TLS to them went, what to do")
    show.add_argument("what", metavar="DOMAIN|ID", nargs="?", default="", help="one domain, or one report of the list")
    show.add_argument("--days", type=int, default=30, help="how far back (default 30)")
    show.add_argument("--no-names", action="store_true", help="don't look up the names of hosts")
    send = verbs.add_parser("send", help="send now what is due, instead of some time after midnight UTC")
    send.add_argument("--dry-run", action="store_true", help="only say what has been counted and who wants it")


def run(args: argparse.Namespace, context: Context) -> int:
    # the daemon's events are for its log; what matters here is in the tables
    logging.getLogger("pymx").addHandler(logging.NullHandler())
    if args.verb == "send" and not args.dry_run:
        return _send(context)
    path = Path(context.config.data_dir) / "reports" / "reports.sqlite"
    if not path.exists():
        context.out.table(["Reports"], [], empty="no reports yet")
        return Exit.OK
    store = Store(path, max_octets=context.config.reports.max_mb << 20)
    try:
        if args.verb == "send":
            return asyncio.run(_dry_run(store, context))
        if args.verb == "show":
            return _show(store, args, context)
        return _sent(store, args, context) if args.sent else _list(store, args, context)
    except StoreUnavailable as e:
        raise CtlError(f"{path}: {e}", Exit.UNAVAILABLE) from None
    finally:
        store.close()


# --- list ---------------------------------------------------------------------------------------------------------


def _list(store: Store, args: argparse.Namespace, context: Context) -> int:
    found = store.received(
        since_s=time.time() - args.days * DAY_S, domain=args.domain.lower(), kind=args.kind, limit=_MAX_REPORTS
    )
    if context.json:
        columns = ["ID", "Kind", "Domain", "Organization", "Report ID", "Begin", "End", "Good", "Bad", "Proof"]
        rows: list[tuple[object, ...]] = [
            (
                r.id,
                r.kind,
                r.domain,
                r.organization,
                r.report_id,
                _iso(r.begin_s),
                _iso(r.end_s),
                r.good,
                r.bad,
                r.proof,
            )
            for r in found
        ]
    else:
        columns = ["ID", "Kind", "Domain", "From", "Day", "Good", "Bad", "Sender proven by"]
        rows = [
            (r.id, r.kind, r.domain, r.organization, _day(r.begin_s), r.good, r.bad, r.proof or "nothing")
            for r in found
        ]
    context.out.table(columns, rows, empty="no reports")
    return Exit.OK


def _sent(store: Store, args: argparse.Namespace, context: Context) -> int:
    since = int(time.time() // DAY_S) - args.days
    rows = [
        (_day(s.day * DAY_S), s.kind, s.domain, s.destination, s.state, s.tries, s.reason)
        for s in store.sendings(since)
        if s.destination and args.domain.lower() in ("", s.domain) and args.kind in ("", s.kind)
    ]
    columns = ["Day", "Kind", "Domain", "Destination", "State", "Tries", "Reason"]
    context.out.table(columns, rows, empty="no reports were sent")
    return Exit.OK


# --- show ---------------------------------------------------------------------------------------------------------


def _show(store: Store, args: argparse.Namespace, context: Context) -> int:
    since = time.time() - args.days * DAY_S
    if args.what.isdigit():
        found = [r for r in store.received(limit=-1) if r.id == int(args.what)]
        if not found:
            raise CtlError(f"there is no report {args.what}")
    else:
        found = store.received(since_s=since, domain=args.what.lower(), limit=_MAX_REPORTS)
    domains: dict[str, list[Received]] = defaultdict(list)
    for received in found:
        domains[received.domain].append(received)
    told = [_domain(store, name, of) for name, of in sorted(domains.items())]
    if not args.no_names:
        asyncio.run(_look_up(told, context))
    outgoing = [] if args.what.isdigit() else _outgoing(store, args.what.lower(), int(since // DAY_S))
    if context.json:
        context.out.details({"domains": told, "outgoing_tls": outgoing})
    else:
        _print(told, outgoing, context)
    return Exit.OK


def _domain(store: Store, domain: str, received: list[Received]) -> dict[str, object]:
    dmarc, tls = [], []
    for one in received:
        document = store.document(one.id)
        if document is None:
            continue  # pruned meanwhile
        if one.kind == "dmarc":
            dmarc.append(msgspec.json.decode(document, type=AggregateReport))
        else:
            tls.append(msgspec.json.decode(document, type=TlsReport))
    return {
        "domain": domain,
        "reports": len(received),
        "unproven": sum(1 for one in received if "pass" not in one.proof),
        "sources": [_source(host) for host in sources(dmarc)],
        "tls": [
            {
                "policy_type": summary.policy_type,
                "successes": summary.successes,
                "failed": summary.failed,
                "reporters": sorted(summary.reporters),
                "failures": [
                    {"result_type": kind, "mx": mx, "reason": reason, "count": count, "advice": tls_advice(kind)}
                    for (kind, mx, reason), count in summary.failures.most_common()
                ],
            }
            for summary in tls_summaries(tls)
        ],
    }


def _source(host: Source) -> dict[str, object]:
    return {
        "source_ip": host.ip,
        "host": "",
        "count": host.count,
        "passed": host.passed,
        "failed": host.failed,
        "dkim_aligned": host.dkim_aligned,
        "spf_aligned": host.spf_aligned,
        "dispositions": dict(host.dispositions),
        "overrides": dict(host.overrides),
        "header_from": dict(host.header_from.most_common(10)),
        "reporters": sorted(host.reporters),
        "this_server": False,
        "advice": host.advice,
    }


def _outgoing(store: Store, domain: str, since_day: int) -> list[dict[str, object]]:
    """Our own connections that failed, by domain and kind."""
    rows: dict[str, list[tuple[str, str, int]]] = defaultdict(list)
    for name, policy, failure, count in store.tls_since(since_day):
        if domain in ("", name):
            rows[name].append((policy, failure, count))
    return [
        {
            "domain": name,
            "policy_type": policy.policy_type,
            "successes": policy.successes,
            "failed": policy.failed,
            "failures": [asdict(failure) for failure in policy.failures],
        }
        for name, counted in rows.items()
        for policy in tls_policies(counted)
        if policy.failed
    ]


async def _look_up(told: list[dict[str, object]], context: Context) -> None:
    """Names of hosts by PTR, and which of them is this server; what does not come soon is left out."""
    resolver = Resolver(context.config.dns)
    own: set[str] = set()
    names: dict[str, str] = {}
    hosts = [host for domain in told for host in cast(list[dict[str, object]], domain["sources"])[:_NAMED]]

    async def ours() -> None:
        with contextlib.suppress(DnsError):
            own.update(await resolver.addresses(context.config.hostname))

    async def name_of(ip: str) -> None:
        with contextlib.suppress(DnsError):
            names[ip] = next(iter(await resolver.ptr(ip)), "")

    try:
        async with asyncio.timeout(_NAMES_S):
            await asyncio.gather(ours(), *(name_of(ip) for ip in {str(host["source_ip"]) for host in hosts}))
    except TimeoutError:
        pass
    for host in hosts:
        ip = str(host["source_ip"])
        host["host"], host["this_server"] = names.get(ip, ""), ip in own
        if ip in own and host["failed"]:
            host["advice"] = "This is this server, so all of it should pass: look at SPF, and at pymxctl dkim show."


def _print(told: list[dict[str, object]], outgoing: list[dict[str, object]], context: Context) -> None:
    if not told and not outgoing:
        print("no reports")
    for domain in told:
        hosts = cast(list[dict[str, object]], domain["sources"])
        tls = cast(list[dict[str, object]], domain["tls"])
        print(f"\n{domain['domain']}: {domain['reports']} reports")
        if domain["unproven"]:
            print(f"  {domain['unproven']} of them without proof of who sent it (see list); anybody can send such")
        if hosts:
            print()
            context.out.table(
                ["Source", "Host", "Messages", "Passed", "By DKIM", "By SPF", "Rejected", "Junk", "What to do"],
                [
                    (h["source_ip"], h["host"], h["count"], h["passed"], h["dkim_aligned"], h["spf_aligned"],
                     cast(dict[str, int], h["dispositions"]).get("reject", 0),
                     cast(dict[str, int], h["dispositions"]).get("quarantine", 0), h["advice"])
                    for h in hosts
                ],
            )  # fmt: skip
        for policy in tls:
            counts = f"{policy['successes']} good, {policy['failed']} failed"
            print(f"\nTLS to {domain['domain']} ({policy['policy_type']}): {counts}")
            failures = cast(list[dict[str, object]], policy["failures"])
            if failures:
                columns = ["Result", "Server", "Sessions", "Reason", "What to do"]
                rows = [(f["result_type"], f["mx"], f["count"], f["reason"], f["advice"]) for f in failures]
                context.out.table(columns, rows)
    if outgoing:
        print("\nTLS from here to others:")
        context.out.table(
            ["Domain", "Policy", "Result", "Server", "Sessions", "Reason"],
            [
                (o["domain"], o["policy_type"], f["result_type"], f["receiving_mx"], f["count"], f["reason"])
                for o in outgoing
                for f in cast(list[dict[str, object]], o["failures"])
            ],
        )


# --- send ---------------------------------------------------------------------------------------------------------


def _send(context: Context) -> int:
    settings = context.config.reports
    if not (settings.dmarc or settings.tls):
        raise CtlError("reports are not sent: set dmarc or tls = true under [reports], and restart pymx")
    done = context.control.call("reports_send", timeout_s=_SEND_S)
    if not isinstance(done, dict) or "error" in done:
        raise CtlError(f"the server could not send: {done}")
    context.out.done(", ".join(f"{count} {state}" for state, count in done.items()), **done)
    return Exit.OK


async def _dry_run(store: Store, context: Context) -> int:
    config = context.config
    signer = Signer(Path(config.data_dir) / "dkim")
    resolver = Resolver(config.dns)
    reporter = Reporter(store, resolver, signer, _refuse, config.reports, hostname=config.hostname)
    planned = await reporter.plan()
    try:
        signed = reporter.is_signed()
    except NotTaken as e:
        raise CtlError(str(e)) from None
    if not signed:
        context.out.warn("no DKIM key for the reports' From address: TLS reports can't be sent, others are distrusted")
    rows = [_planned(plan, on=plan.kind in reporter.kinds) for plan in planned]
    columns = ["Day", "Kind", "Domain", "Reports", "Octets", "To", "Not to", "Remark"]
    context.out.table(columns, rows, empty="nothing is counted that was not reported")
    return Exit.OK


def _planned(plan: Planned, *, on: bool) -> tuple[object, ...]:
    remark = plan.trouble
    if not remark and not plan.wanted.destinations and not plan.wanted.refused:
        remark = "no reports are wanted"
    if not on:
        remark = "; ".join(filter(None, (remark, f"[reports] {plan.kind} is off")))
    elif plan.day == int(time.time() // DAY_S):
        remark = "; ".join(filter(None, (remark, "the day is not over")))
    return (
        _day(plan.day * DAY_S), plan.kind, plan.domain, plan.reports, plan.octets,
        [d.uri for d in plan.wanted.destinations], [f"{uri} ({why})" for uri, why in plan.wanted.refused], remark,
    )  # fmt: skip


async def _refuse(*_: object) -> None:
    raise NotTaken("only planned", temporary=True)


def _iso(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="seconds")


def _day(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d")

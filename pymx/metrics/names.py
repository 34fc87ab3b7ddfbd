"""Every metric: its kind and what it counts. At /metrics names have `pymx_` in front, and those of counters `_total`
behind.

A name that ends in `_*` stands for a family.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]
FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
SLOW = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)


@dataclass(frozen=True, slots=True)
class Metric:
    """`labelled`: there is no series without labels."""

    kind: Kind
    help: str
    buckets: tuple[float, ...] = ()
    labelled: bool = False


def _counter(text: str, *, labelled: bool = False) -> Metric:
    return Metric("counter", text, labelled=labelled)


def _gauge(text: str) -> Metric:
    return Metric("gauge", text)


METRICS: dict[str, Metric] = {
    # SMTP
    "smtp_connections": _counter("SMTP, submission and LMTP connections"),
    "smtp_messages": _counter("messages taken over SMTP, submission and LMTP"),
    "smtp_early_talkers": _counter("peers that talked before the greeting"),
    "connection_refused": _counter("connections turned away at the greeting"),
    "command_refused": _counter("other commands refused"),
    "mail_refused": _counter("MAIL FROM refused"),
    "rcpt_refused": _counter("RCPT TO refused"),
    "message_refused": _counter("messages refused at or after DATA"),
    "login_refused": _counter("AUTH refused"),
    "messages_accepted": _counter("messages accepted, by listener; local are those made here", labelled=True),
    "message_octets_accepted": _counter("octets of accepted messages"),
    "message_accept_seconds": Metric("histogram", "from the end of the data and its checks to the 250", FAST),
    "messages_checked": _counter("messages judged by the checks, by verdict", labelled=True),
    "message_check_seconds": Metric("histogram", "from the end of the data to the verdict of the checks", FAST),
    "mta_messages_accepted": _counter("messages accepted"),
    "mta_messages_forwarded": _counter("copies of others' messages sent on to other servers"),
    "forwards_refused": _counter("messages not forwarded because they failed DMARC or are junk"),
    "forwards_refused_in_session": _counter("forwarded messages refused by their destination while the peer waited"),
    "tls_handshakes_failed": _counter("TLS handshakes that failed"),
    "tls_handshakes_refused": _counter("connections turned away before TLS"),
    # public pages
    "web_requests": _counter("requests to the public pages, by status", labelled=True),
    # local delivery
    "mda_messages_delivered": _counter("copies stored in mailboxes"),
    "mda_deliveries_failed": _counter("copies that a mailbox could not take"),
    "store_messages_delivered": _counter("messages written by the store"),
    # IMAP and logins
    "imap_connections": _counter("IMAP connections"),
    "imap_connections_refused": _counter("IMAP connections turned away"),
    "logins": _counter("good logins"),
    "logins_failed": _counter("wrong logins"),
    "logins_deferred": _counter("logins that could not be checked"),
    "logins_banned": _counter("logins refused because of a ban"),
    "logins_slowed": _counter("answers to wrong logins held back"),
    "addresses_banned": _counter("addresses banned"),
    # queue and delivery to other servers
    "queue_messages_accepted": _counter("copies put into the queue"),
    "queue_commits": _counter("commits of the queue"),
    "queue_*": _counter("outcomes of attempts"),
    "deliveries": _counter("attempts for a recipient elsewhere, by provider and result", labelled=True),
    "delivery_seconds": Metric("histogram", "length of an attempt, by provider", SLOW),
    "outbound_connections": _counter("connections made to other servers"),
    "outbound_connections_failed": _counter("connections to other servers that failed"),
    "destinations_dead": _counter("times that nobody could be talked to at a destination"),
    "providers_slowed": _counter("times that a provider wanted less mail from us"),
    "outbound_tls_failed": _counter("servers tried again without TLS"),
    "outbound_maybe_doubled": _counter("recipients whose message may arrive twice"),
    "notifications_*": _counter("delivery status notifications sent"),
    "bounces_dropped": _counter("recipients given up without a notification"),
    "tls_downgraded": _counter("servers whose TLS got worse"),
    "tlsa_lookups_failed": _counter("TLSA questions without a usable answer"),
    "sts_fetches": _counter("MTA-STS policies fetched"),
    "sts_fetches_failed": _counter("MTA-STS policies that could not be fetched"),
    "tls_state_failures": _counter("times that what is known of others' TLS was damaged, or not read or written"),
    # DNS, junk, reports, the server itself
    "dns_questions": _counter("questions to name servers"),
    "dns_failures": _counter("questions without a usable answer"),
    "junk_*": _counter("junk filter"),
    "reports_*": _counter("DMARC and TLS reports"),
    "report_results_dropped": _counter("results not counted for reports"),
    "log_lines": _counter("warnings and errors in the log, by level", labelled=True),
    "events_dropped": _counter("events that did not get into the event store"),
    # gauges
    "sessions": _gauge("sessions now, by listener"),
    "queue_messages": _gauge("messages in the queue"),
    "queue_deliveries": _gauge("deliveries waiting, by state"),
    "queue_oldest_seconds": _gauge("age of the oldest message in the queue"),
    "bans": _gauge("addresses that can't log in now"),
    "disk_free_octets": _gauge("room on the disks, by what lies there"),
    "certificate_expiry_seconds": _gauge("time until the certificate expires"),
    "event_loop_lag_seconds": _gauge("how late the event loop was at worst in the last seconds, by process"),
    "memory_octets": _gauge("resident memory, by process"),
    "cpu_seconds": _counter("CPU time used"),
    "open_files": _gauge("open file descriptors, by process"),
    "up": _gauge("1 if the process has been heard of lately"),
}  # fmt: skip


def find(name: str) -> Metric | None:
    """The metric of that name, or its family's."""
    found = METRICS.get(name)
    if found is None:
        found = next((m for n, m in METRICS.items() if n.endswith("_*") and name.startswith(n[:-1])), None)
    return found

"""An event of the store as a person reads it: what it is called, and one sentence."""

from __future__ import annotations

from pymx.admin.times import duration
from pymx.events.event import Event

# event → what stands in the second column
WORDS = {
    "smtp_session": "connected",
    "message_checked": "checked",
    "message_accepted": "accepted",
    "message_delivered": "delivered",
    "message_forwarded": "forwarded",
    "delivery_attempt": "",  # its verdict
    "local_delivery_failed": "not stored",
    "local_delivery_queued": "waits",
    "local_delivery_gave_up": "gave up",
    "notification_sent": "notified",
    "bounce_dropped": "not notified",
    "message_refused": "refused",
    "rcpt_refused": "refused",
    "mail_refused": "refused",
    "outbound_tls_failed": "no TLS",
    "delivery_unsure": "unsure",
}


def word(event: Event) -> str:
    if event.name == "delivery_attempt":
        return event.text("verdict")
    return WORDS.get(event.name, event.name.replace("_", " "))


def sentence(event: Event) -> str:
    """What happened, without control characters."""
    say = _SENTENCES.get(event.name, _anything)
    return "".join(c if c.isprintable() else "\ufffd" for c in say(event))


def _session(event: Event) -> str:
    t = event.text
    who = f"from {t('peer_ip') or 'a local socket'}" + (f" ({t('helo')})" if t("helo") else "")
    how = t("tls") or "no TLS"
    login = f", logged in as {t('account')}" if t("account") else ""
    took = duration(_number(event, "duration_ms") / 1000)
    end = f", ended: {t('reason')}" if t("reason") else ""
    return f"{who} to {t('listener')}, {how}{login}; messages {t('messages')}, closed after {took}{end}"


def _checked(event: Event) -> str:
    t = event.text
    said = f"{t('verdict')} in {t('duration_ms')} ms: {t('check')}"
    if t("score"):
        said += f", score {t('score')}" + (f" ({t('symbols')})" if t("symbols") else "")
    if t("reply"):
        said += f", replied {t('reply')}"
    return said + (f"; {t('reason')}" if t("reason") else "")


def _accepted(event: Event) -> str:
    t = event.text
    way = f" by {t('listener')}" if t("listener") else ""
    login = f" from {t('account')}" if t("account") else ""
    return (
        f"as {event.queue_id}{way}{login}: {t('mail_from')} to {t('rcpt_to')}, "
        f"{t('size_octets')} octets, 250 after {t('duration_ms')} ms"
    )


def _delivered(event: Event) -> str:
    t = event.text
    whose = t("account") if t("account") == t("rcpt_to") else f"{t('account')} (for {t('rcpt_to')})"
    return f"to {whose}: {t('mailbox')}, UID {t('uid')}"


def _forwarded(event: Event) -> str:
    return f"to {event.text('rcpt_to')}, as {event.queue_id}, from {event.text('mail_from')}"


def _attempt(event: Event) -> str:
    t = event.text
    where = f" at {t('mx')}" if t("mx") else ""
    where += f" [{t('peer_ip')}]" if t("peer_ip") else ""
    tls = f", {t('tls')}" if t("tls") else ", no TLS" if t("mx") else ""
    return f"{t('rcpt_to')}, try {t('count')}{where}{tls}: {t('reply')} ({t('duration_ms')} ms)"


def _refused(event: Event) -> str:
    t = event.text
    what = {"rcpt_refused": "recipient", "mail_refused": "sender", "message_refused": "message to"}[event.name]
    parts = [what, t("rcpt_to"), f"from {t('mail_from')}" if t("mail_from") else "", f"by {t('peer_ip')} ({t('helo')})"]
    return " ".join(filter(None, parts)) + f": {t('reply')}" + (f"; {t('reason')}" if t("reason") else "")


def _reasoned(event: Event) -> str:
    t = event.text
    who = t("rcpt_to") or t("mx") or t("account")
    said = ", ".join(filter(None, (t("verdict"), t("reply"), t("reason"))))
    return f"{who}: {said}" if said else who


def _waits(event: Event) -> str:
    return f"{event.text('rcpt_to')}: its mailbox can't take it now; a copy waits in the queue as {event.queue_id}"


def _notified(event: Event) -> str:
    kinds = {"failed": "failure", "delayed": "delay", "delivered": "delivery", "relayed": "delivery"}
    return f"{event.text('rcpt_to')} was told of the {kinds.get(event.text('verdict'), event.text('verdict'))}"


def _anything(event: Event) -> str:
    """The fields as they are in the log."""
    return " ".join(f"{key}={value}" for key, value in event.fields.items())


def _number(event: Event, field: str) -> float:
    value = event.fields.get(field, 0)
    return float(value) if isinstance(value, int | float) else 0.0


_SENTENCES = {
    "smtp_session": _session,
    "message_checked": _checked,
    "message_accepted": _accepted,
    "message_delivered": _delivered,
    "message_forwarded": _forwarded,
    "delivery_attempt": _attempt,
    "message_refused": _refused,
    "rcpt_refused": _refused,
    "mail_refused": _refused,
    "local_delivery_failed": _reasoned,
    "local_delivery_gave_up": _reasoned,
    "bounce_dropped": _reasoned,
    "outbound_tls_failed": _reasoned,
    "delivery_unsure": _reasoned,
    "local_delivery_queued": _waits,
    "notification_sent": _notified,
}

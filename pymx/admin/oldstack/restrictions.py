"""Postfix's rules about who may send what: smtpd restrictions, postscreen's lists of hosts, header checks."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pymx.admin.oldstack import postfix
from pymx.admin.oldstack.postfix import Postfix, Unreadable, Value
from pymx.admin.oldstack.report import Fate, Report

_DNSBL_WEIGHT = 5
_FIELD = re.compile(r"\^\(?:?\s*([A-Za-z0-9-]+):?\)?:?\Z")


def restrictions(old: Postfix, name: str, value: Value, report: Report) -> None:
    for word, argument in _restriction_words(old.expanded(name)):
        _restriction(name, value, word, argument, report)


def _restriction_words(text: str) -> Iterator[tuple[str, str]]:
    words = iter(text.replace(",", " ").split())
    for word in words:
        takes = word.startswith(("reject_rbl", "reject_rhsbl", "permit_dnswl", "permit_rhswl", "check_"))
        yield word, next(words, "") if takes else ""


_RESTRICTIONS = {
    "permit_mynetworks": (Fate.SAME, "see mynetworks"),
    "permit_sasl_authenticated": (Fate.SAME, "users log in at 465 and 587"),
    "reject_unauth_destination": (Fate.SAME, "pymx is no open relay"),
    "defer_unauth_destination": (Fate.SAME, "pymx is no open relay"),
    "reject_sender_login_mismatch": (Fate.SAME, "users send as themselves and by the aliases that lead to them"),
    "reject_authenticated_sender_login_mismatch": (Fate.SAME, "users send as themselves and by their aliases"),
    "reject_non_fqdn_sender": (Fate.SAME, "refused"),
    "reject_non_fqdn_recipient": (Fate.SAME, "refused"),
    "reject_unlisted_recipient": (Fate.SAME, "unknown recipients are refused"),
    "reject_unauth_pipelining": (Fate.SAME, "who talks before our greeting is told by [checks] early_talker"),
    "reject_invalid_helo_hostname": (Fate.DIFFERENT, "a hint of [checks] helo, not refused for this alone"),
    "reject_non_fqdn_helo_hostname": (Fate.DIFFERENT, "a hint of [checks] helo, not refused for this alone"),
    "reject_unknown_helo_hostname": (Fate.DIFFERENT, "a hint of [checks] helo, not refused for this alone"),
    "reject_unknown_client_hostname": (Fate.DIFFERENT, "a hint of [checks] iprev, not refused for this alone"),
    "reject_unknown_reverse_client_hostname": (Fate.DIFFERENT, "a hint of [checks] iprev, not refused for this alone"),
    "reject_unknown_sender_domain": (Fate.DIFFERENT, "SPF and DMARC judge the sender's domain"),
    "permit": (Fate.SAME, ""),
    "reject": (Fate.SAME, ""),
}


def _restriction(name: str, value: Value, word: str, argument: str, report: Report) -> None:
    if word in ("reject_rbl_client", "reject_rhsbl_client", "permit_dnswl_client"):
        key = "dnswl" if word.startswith("permit") else "dnsbl"
        if word == "reject_rhsbl_client":
            report.say(value, name, Fate.LOST, f"{word} {argument}: lists of names are not asked; rspamd does")
            return
        zone, _, codes = argument.partition("=")
        entry = f"{zone}={codes}*{_DNSBL_WEIGHT}" if codes else f"{zone}={_DNSBL_WEIGHT}"
        note = f"{word} {argument}: " + (
            "takes its weight off" if key == "dnswl" else "mail from listed hosts goes to Junk instead of being refused"
        )
        report.add(value, name, "checks", key, [entry], note=note)
    elif word == "check_policy_service":
        if re.search(r":(10023|60000)\b|postgrey", argument):
            note = f"{argument}: pymx's own greylisting, only for those with hints against them"
            report.take(value, name, "checks", "greylist", True, note=note)
        elif "spf" in argument:
            report.say(value, name, Fate.SAME, f"{argument}: pymx checks SPF itself")
        else:
            report.say(value, name, Fate.LOST, f"{word} {argument}: pymx asks no policy services")
    elif word in _RESTRICTIONS:
        fate, meaning = _RESTRICTIONS[word]
        report.say(value, name, fate, f"{word}{': ' if meaning else ''}{meaning}")
    else:
        report.say(value, name, Fate.LOST, f"{word} {argument}".strip() + ": pymx has no such rule")


def postscreen_sites(old: Postfix, name: str, value: Value, report: Report) -> None:
    good, bad = list[object](), list[object]()
    for word in old.expanded(name).replace(",", " ").split():
        match = re.fullmatch(r"([^=*]+)(?:=([^*]+))?(?:\*(-?\d+))?", word)
        if match is None:
            report.say(value, name, Fate.LOST, f"{word}: not understood")
            continue
        weight = int(match[3] or 1)
        entry = f"{match[1]}={match[2]}*{abs(weight)}" if match[2] else f"{match[1]}={abs(weight)}"
        (good if weight < 0 else bad).append(entry)
    if bad:
        report.add(
            value, name, "checks", "dnsbl", bad, note="mail from listed hosts goes to Junk instead of being refused"
        )
    if good:
        report.add(value, name, "checks", "dnswl", good)


def postscreen_threshold(old: Postfix, name: str, value: Value, report: Report) -> None:
    text = old.expanded(name)
    if text.isdigit() and int(text):
        report.take(value, name, "checks", "junk_score", int(text), note="all hints count for it, not only lists")


# Header checks


def header_checks(old: Postfix, name: str, value: Value, report: Report) -> None:
    for kind, table in postfix.maps(old.expanded(name)):
        if kind not in ("regexp", "pcre"):
            report.say(value, name, Fate.LOST, f"{kind}:{table}: pymx has no such rules")
            continue
        try:
            rows = postfix.patterns(table)
        except Unreadable as e:
            report.say(value, name, Fate.LOST, str(e))
            continue
        for pattern, action, line in rows:
            here = Value(f"/{pattern}/ {action}", table, line)
            field = _FIELD.match(pattern.replace("\\", "").rstrip(".*"))
            if action.split(None, 1)[:1] == ["IGNORE"] and field:
                if name == "header_checks":
                    report.say(
                        here, name, Fate.DIFFERENT, f"{field[1]} is taken out of users' mail only, not of received"
                    )
                report.add(here, name, "submission", "strip_fields", [field[1]], note="out of what users send")
            else:
                report.say(here, name, Fate.LOST, "pymx has no rules for single header fields; rspamd has")

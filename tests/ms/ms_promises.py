"""What must be seen of an account after a kill or a power cut, whoever looks: pymx or Dovecot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ms_scenarios import Flagged, Folder, Going, Gone, Stored, Subscribed, Told, Violation

from pymx.ms.layout import Levels


@dataclass(frozen=True)
class Seen:
    """A mailbox as somebody shows it; `messages` are UIDs to tokens and flags, keywords among them."""

    uidvalidity: int
    uidnext: int
    messages: Mapping[int, tuple[str, frozenset[str]]]


def token_of(text: str) -> str:
    """Whose message this is. Raises Violation if it is not whole."""
    token = text.replace("\r\n", "\n").partition("\n")[0].removeprefix("Subject: ")
    if not token or not text.rstrip("\r\n").endswith(f"END {token}"):
        raise Violation(f"half a message: {text!r}")
    return token


def check(facts: Sequence[object], seen: Mapping[Levels, Seen], subscribed: set[Levels], *, cut: bool) -> None:
    """Raises Violation. `cut`: after a power cut, which may take back flags."""
    going = {(f.token, f.place) for f in facts if isinstance(f, Going)}
    tokens = {place: {token: uid for uid, (token, _) in box.messages.items()} for place, box in seen.items()}
    for place, box in seen.items():
        if len(tokens[place]) != len(box.messages):
            raise Violation(f"a message is twice in {place}: {box.messages}")
        if box.messages and max(box.messages) >= box.uidnext:
            raise Violation(f"UIDNEXT of {place} is {box.uidnext}, there is {max(box.messages)}")
    for fact in facts:
        match fact:
            case Folder():
                _check_folder(fact, seen, facts, going)
            case Subscribed() if fact.place not in subscribed:
                raise Violation(f"subscription {fact.place} lost")
            case Stored():
                places = [p for p in fact.places if (fact.token, p) not in going and ("", p) not in going]
                promised = len(places) == len(fact.places) or (places and len(fact.places) > 1)
                if promised and not any(fact.token in tokens.get(place, {}) for place in fact.places):
                    raise Violation(f"{fact.token} lost from {fact.places}")
            case Gone() if fact.token in tokens.get(fact.place, {}):
                raise Violation(f"{fact.token} is back in {fact.place}")
            case Flagged() if fact.durable or not cut:
                flags = seen[fact.place].messages[tokens[fact.place][fact.token]][1]
                if not fact.flags <= flags:
                    raise Violation(f"{fact.token} lost {fact.flags - flags}")
    _check_told(facts, seen, tokens, going)


def _check_folder(
    fact: Folder, seen: Mapping[Levels, Seen], facts: Sequence[object], going: set[tuple[str, Levels]]
) -> None:
    if [f for f in facts if isinstance(f, Folder) and f.place == fact.place][-1] is not fact:
        return
    if fact.place not in seen:
        if fact.exists and ("", fact.place) not in going:
            raise Violation(f"mailbox {fact.place} lost")
    elif not fact.exists:
        raise Violation(f"mailbox {fact.place} is back")
    elif seen[fact.place].uidvalidity != fact.uidvalidity:
        raise Violation(f"UIDVALIDITY of {fact.place} changed")


def _check_told(
    facts: Sequence[object],
    seen: Mapping[Levels, Seen],
    tokens: Mapping[Levels, Mapping[str, int]],
    going: set[tuple[str, Levels]],
) -> None:
    for fact in facts:
        if not isinstance(fact, Told) or fact.place not in seen:
            continue
        box, uid = seen[fact.place], fact.uid
        if uid >= box.uidnext:
            raise Violation(f"UID {uid} of {fact.place} will be given again: UIDNEXT is {box.uidnext}")
        if box.messages.get(uid, (fact.token,))[0] != fact.token:
            raise Violation(f"UID {uid} of {fact.place} was {fact.token}, is {box.messages[uid][0]}")
        if (fact.token, fact.place) in going:
            continue  # unlinked but not synced: back as a new message, as the expunge may have been told
        if tokens[fact.place].get(fact.token, uid) != uid:
            raise Violation(f"{fact.token} had UID {uid}, has {tokens[fact.place][fact.token]}")

"""One run of pyspf over a table of DNS answers; it ends with a result, or with the questions the table lacks.

`Replay` is pyspf's query with its four doors to the DNS replaced. Void lookups (RFC 7208 s. 4.6.4) are counted here,
for every term whose answer is empty; names that can't be in the DNS count as void without being asked.
"""

from __future__ import annotations

from dataclasses import dataclass

import spf

Question = tuple[str, str]  # name, type
# Records as `resolver.Answer` has them, or why they can't be had for now.
Answers = dict[Question, "tuple[tuple[object, ...], ...] | str"]


@dataclass(frozen=True, slots=True)
class Limits:
    """RFC 7208 s. 4.6.4, and how large a record and how long a chain of answers we are ready to work on."""

    lookups: int = 10
    void_lookups: int = 2
    hosts: int = 10  # names of one "mx" or "ptr"
    record_octets: int = 4096
    term_octets: int = 512  # pyspf expands macros in quadratic time
    runs: int = 64
    work_s: float = 0.5  # CPU time of all runs; the largest honest records need a fifth of it


@dataclass(frozen=True, slots=True)
class Sender:
    """The arguments of check_host() (s. 4.1), and the name of this host for %{r}."""

    ip: str
    local_part: str
    domain: str
    helo: str
    receiver: str


@dataclass(frozen=True, slots=True)
class Evaluation:
    result: str
    explanation: str


class _Missing(Exception):
    """The table lacks an answer; which one is in `missing`."""


class Replay(spf.query):  # type: ignore[misc]  # untyped
    """pyspf's evaluation of one sender."""

    def __init__(self, answers: Answers, limits: Limits, who: Sender) -> None:
        super().__init__(i=who.ip, s=f"{who.local_part}@{who.domain}", h=who.helo, receiver=who.receiver or None)
        # pyspf takes what follows the first "@" for the domain; a quoted local part may hold one
        self.l, self.o, self.d = who.local_part, who.domain, who.domain
        self.answers = answers
        self.limits = limits
        self.missing: set[Question] = set()

    def check_lookups(self) -> None:
        self.lookups += 1
        if self.lookups > self.limits.lookups:
            raise spf.PermError(f"more than {self.limits.lookups} DNS lookups")

    def dns(self, name: str, qtype: str, cnames: object = None, ignore_void: bool = False) -> list[object]:
        """The values of the records, as pyspf has them: TXT as a tuple of strings, MX as (preference, name)."""
        records = self._records(name, qtype)
        if not records and not ignore_void:
            self.void_lookups += 1
            if self.void_lookups > self.limits.void_lookups:
                raise spf.PermError(f"more than {self.limits.void_lookups} void DNS lookups")
        return [r if qtype in ("TXT", "MX") else r[0] for r in records]

    def dns_spf(self, domain: str) -> str | None:
        record: str | None = super().dns_spf(domain)
        if record is not None and len(record) > self.limits.record_octets:
            raise spf.PermError(f"the SPF record of {domain} is longer than {self.limits.record_octets} octets")
        return record

    def expand_domain(self, arg: str) -> str:
        self._limit_term(arg)
        domain: str = super().expand_domain(arg)
        return domain

    def expand(self, s: str, stripdot: bool = True) -> str:
        self._limit_term(s)
        expanded: str = super().expand(s, stripdot)
        return expanded

    def _limit_term(self, text: str) -> None:
        if len(text) > self.limits.term_octets:
            raise spf.PermError(f"a term of more than {self.limits.term_octets} octets")

    def dns_mx(self, domainname: str) -> list[object]:
        """The addresses of all MX hosts (s. 5.4), which are asked for together."""
        hosts = sorted(str(r[1]) for r in self.dns(domainname, "MX"))  # type: ignore[index]  # (preference, host)
        if len(hosts) > self.limits.hosts:
            raise spf.PermError(f"more than {self.limits.hosts} MX records")
        self._want((host, self.A) for host in hosts)
        return [a for host in hosts for a in self.dns_a(host, self.A)]

    def validated_ptrs(self) -> list[str]:
        """The names of the client that lead back to it (s. 5.5): a name that can't be looked up is skipped."""
        try:
            names = [str(name) for name in self.dns_ptr(self.i)][: self.limits.hosts]
        except spf.TempError:
            return []
        self._want((name, self.A) for name in names)
        return [name for name in names if self._leads_back(name)]

    def _leads_back(self, name: str) -> bool:
        try:
            return bool(self.cidrmatch(self.dns_a(name, self.A), self.cidrmax))
        except spf.TempError:
            return False

    def _want(self, questions: object) -> None:
        wanted = {(n.lower().rstrip("."), t) for n, t in questions}  # type: ignore[attr-defined]
        self.missing |= {q for q in wanted if _is_name(q[0]) and q not in self.answers}
        if self.missing:
            raise _Missing

    def _records(self, name: str, qtype: str) -> tuple[tuple[object, ...], ...]:
        name = name.lower().removesuffix(".")
        if not _is_name(name):
            return ()
        found = self.answers.get((name, qtype))
        if found is None:
            self.missing.add((name, qtype))
            raise _Missing
        if isinstance(found, str):
            raise spf.TempError(found)
        return found


def _is_name(name: str) -> bool:
    # RFC 8616 s. 4: a term whose macros give characters outside ASCII never matches
    return name.isascii() and len(name) <= 253 and all(0 < len(label) < 64 for label in name.split("."))


def evaluate(answers: Answers, who: Sender, limits: Limits) -> Evaluation | set[Question]:
    """Run once. A set is what has to be asked before the next run."""
    run = Replay(answers, limits, who)
    try:
        result, _, explanation = run.check()
    except _Missing:
        return run.missing
    except (ValueError, LookupError, TypeError, AssertionError) as e:
        # pyspf lets Python's own errors out for some broken terms, such as a prefix length of 5,000 digits
        result, explanation = "permerror", f"the record can't be read: {type(e).__name__}"
    return run.missing or Evaluation(str(result), str(explanation))

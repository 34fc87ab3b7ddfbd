"""Name resolution from a table, with the resolver's interface: for tests of what is asked, not of how."""

from __future__ import annotations

from collections.abc import Iterable

from pymx.resolver.answer import Answer, NoRecords, NoSuchDomain, TemporaryDnsError

TIMEOUT = "TIMEOUT"
MAX_CNAMES = 10

Record = tuple[object, ...]


class TableOfNames:
    """`{"example.com": [("TXT", (b"v=spf1 -all",)), ("MX", (10, "mx.example.com"))]}`.

    TIMEOUT instead of a record's value makes questions for its type fail, TIMEOUT instead of a pair those for types
    that aren't there. CNAMEs are followed. `asked` is what was asked, in order.
    """

    def __init__(self, table: dict[str, list[object]] | None = None) -> None:
        self.table: dict[str, list[object]] = {n.lower(): rs for n, rs in (table or {}).items()}
        self.asked: list[tuple[str, str]] = []

    def add(self, name: str, rdtype: str, *records: Record | str) -> None:
        """Records as `Answer` has them; a string stands for a TXT record of one string, or for a tuple of it."""
        items = self.table.setdefault(name.lower(), [])
        for record in records:
            if isinstance(record, str) and record != TIMEOUT:
                record = (record.encode(),) if rdtype == "TXT" else (record,)
            items.append((rdtype, record))

    async def resolve(self, name: str, rdtype: str) -> Answer:
        self.asked.append((name, rdtype))
        owner = name.lower().rstrip(".").replace("\\\\", "\\")
        for _ in range(MAX_CNAMES):
            found = list(self._records(owner, name, rdtype))
            if found:
                return Answer(name, owner, rdtype, tuple(found), 300, False)
            alias = next(iter(self._records(owner, name, "CNAME")), None)
            if alias is None:
                break
            owner = str(alias[0]).lower().rstrip(".")
        else:
            raise TemporaryDnsError(name, rdtype, "CNAME loop")
        if owner in self.table:
            raise NoRecords(name, rdtype, f"no {rdtype} records")
        if any(n.endswith("." + owner) for n in self.table):
            raise NoRecords(name, rdtype, "nothing here but below it")
        raise NoSuchDomain(name, rdtype, "no such domain")

    def _records(self, owner: str, name: str, rdtype: str) -> Iterable[Record]:
        found: list[Record] = []
        broken = False
        for item in self.table.get(owner, []):
            if item == TIMEOUT:
                broken = True
                continue
            assert isinstance(item, tuple)
            if item[0] != rdtype:
                continue
            if item[1] == TIMEOUT:
                broken = True
                break
            found.append(item[1])
        if broken and not found:
            raise TemporaryDnsError(name, rdtype, "time-out")
        return found

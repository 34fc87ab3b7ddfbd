"""Who is here: domains, accounts and aliases, read from the accounts database through a cache.

`resolve` answers where mail for an address goes, by the rules of `pymx.accounts.aliases`, plus these: postmaster@ and
abuse@ of every domain of ours (RFC 5321 s. 4.5.1, RFC 2142), of the server's own name, and postmaster without a domain
always lead somewhere: to the alias or user of that name, else to `[accounts] postmaster`, else to the oldest user.

While the database does not answer, what was found within `stale_cache_s` stays found; for everything else
`DirectoryUnavailable` is raised. `invalidate` forgets all of it, and answers that were under way when it was called
are not kept.

An address is compared in lower case; a domain is known under its A-labels and its U-labels, however the database
has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import idna

from pymx import log
from pymx.accounts import aliases
from pymx.accounts.account import Account, AliasLoop, DirectoryUnavailable, Resolution, UnknownRecipient
from pymx.accounts.aliases import Node
from pymx.accounts.cache import MISS, TtlCache
from pymx.accounts.reader import Reader
from pymx.accounts.reading import Row
from pymx.config.model import Accounts, Database
from pymx.mail.address import Address, AddressError, domain_to_ascii, parse_address

_ROLES = frozenset({"postmaster", "abuse"})
_MAX_WARNINGS = 1000  # until the next change of the accounts

_V = TypeVar("_V")


@dataclass(frozen=True, slots=True)
class _Domain:
    id: int
    name: str  # as the database has it, lower case


@dataclass(frozen=True, slots=True)
class _User:
    account: Account
    password: str


@dataclass(frozen=True, slots=True)
class _Entry:
    """What the tables say of one key, `local@domain` or `@domain`. An entry with neither is cached as absent."""

    user: _User | None
    destinations: tuple[str, ...] | None


# The error stands for "can't be told now": whether it matters depends on what the other keys say.
_Answer = _Entry | DirectoryUnavailable | None


class Directory:
    """One per process. The default quotas are for users without one of their own."""

    def __init__(
        self,
        database: Database,
        accounts: Accounts,
        *,
        delimiter: str,
        hostname: str,
        default_quota_octets: int = 0,
        default_quota_messages: int = 0,
    ) -> None:
        self._reader = Reader(database)
        self._accounts = accounts
        self._delimiter = delimiter
        self._hostname = hostname.lower()
        self._default_quota_octets = default_quota_octets
        self._default_quota_messages = default_quota_messages
        self._log = log.get("accounts")
        self._generation = 0
        self._warned: set[tuple[str, str]] = set()  # a wrong alias is logged once, not with each of its messages
        self._domains = _cache(database, _Domain)
        self._entries = _cache(database, _Entry)
        self._oldest = _cache(database, _User)

    async def start(self) -> None:
        """Connect and check the schema. Raises SchemaError, DatabaseUrlError; a database that is down is no error."""
        await self._reader.start()

    async def close(self) -> None:
        await self._reader.close()

    def invalidate(self) -> None:
        """Forget everything: the tables have changed."""
        self._generation += 1
        self._warned.clear()
        self._domains.clear()
        self._entries.clear()
        self._oldest.clear()

    async def is_local(self, domain: str) -> bool:
        """Is mail for `domain` ours? Also the server's own name is, for its postmaster."""
        name = domain.lower()
        return not name or name == self._hostname or await self._domain(name) is not None

    async def resolve(self, address: Address) -> Resolution:
        """Where mail for an address of ours goes. Raises UnknownRecipient (also for a domain that is not ours: nobody
        may take a foreign address for a deliverable one), AliasLoop, DirectoryUnavailable."""
        domain = await self._domain(address.domain) if address.domain else None
        trouble: UnknownRecipient | AliasLoop = UnknownRecipient(f"{address.domain} is not a domain of this server")
        if domain:
            quick = self._plain_mailbox(address, domain)
            if quick:
                return quick
            try:
                return await self._expand(address)
            except (UnknownRecipient, AliasLoop) as e:
                trouble = e
        if address.local_part.lower() in _ROLES and (domain or address.domain in ("", self._hostname)):
            return await self._postmaster(domain, trouble)
        raise trouble

    async def account(self, email: str) -> Account | None:
        """The user with that address; aliases and details do not count."""
        user = await self._user(email)
        return user.account if user else None

    async def password_hash(self, email: str) -> str | None:
        """The stored password of that user."""
        user = await self._user(email)
        return user.password if user else None

    async def may_send_as(self, account: Account, address: Address) -> bool:
        """May `account` write as `address`? Its own address, with any detail, and aliases that lead to it (a catch-all
        too); never the address of another mailbox, whatever aliases lay over it. Raises DirectoryUnavailable."""
        if account.email == address.key:
            return True
        if account.email == address.without_detail(self._delimiter).key:
            return await self._user(str(address)) is None  # an old installation may have alice+bob@ as a user
        if not address.domain or await self._domain(address.domain) is None:
            return False
        try:
            nodes = await self._walk(address)
        except AliasLoop:
            return False
        return account.id in {owner.id for owner in aliases.owners(address, nodes)}

    # Roles

    async def _postmaster(self, domain: _Domain | None, trouble: UnknownRecipient | AliasLoop) -> Resolution:
        if self._accounts.postmaster:
            try:
                target = parse_address(self._accounts.postmaster)
                if not await self.is_local(target.domain):
                    return Resolution((), (target,))
                return await self._expand(target)
            except (AddressError, UnknownRecipient, AliasLoop) as e:
                self._warn("postmaster_unusable", self._accounts.postmaster, str(e))
        user = (await self._oldest_user(domain) if domain else None) or await self._oldest_user(None)
        if user is None:
            raise trouble
        return Resolution((user.account,))

    async def _oldest_user(self, domain: _Domain | None) -> _User | None:
        key = domain.name if domain else ""
        cached = self._oldest.get(key)
        if cached is not MISS:
            return cached
        generation = self._generation
        try:
            row = await self._reader.first_user(domain.id if domain else None)
        except DirectoryUnavailable:
            stale = self._oldest.stale(key)
            if stale is None:
                raise
            return stale
        user = self._user_of(row) if row else None
        if generation == self._generation:
            self._oldest.put(key, user)
        return user

    # Expansion

    def _plain_mailbox(self, address: Address, domain: _Domain) -> Resolution | None:
        """The answer for a user without alias, straight from the cache: by far the most frequent question."""
        entry = self._entries.get(f"{address.local_part.lower()}@{domain.name}")
        if entry is MISS or entry is None or entry.user is None or entry.destinations is not None:
            return None
        return Resolution((entry.user.account,))

    async def _expand(self, address: Address) -> Resolution:
        settled = aliases.settle(address, await self._walk(address))
        for unknown in settled.unknown:
            if unknown.key != address.key:
                self._warn("alias_target_unknown", str(address), f"there is no {unknown}")
        if settled.accounts or settled.external:
            return Resolution(settled.accounts, settled.external)
        if settled.circular:
            raise AliasLoop(f"the aliases of {address} lead in a circle")
        raise UnknownRecipient(f"there is no {address}")

    async def _walk(self, address: Address) -> dict[str, Node]:
        return await aliases.walk(
            address,
            self._find,
            max_depth=self._accounts.max_alias_depth,
            max_targets=self._accounts.max_alias_targets,
        )

    async def _find(self, addresses: Sequence[Address]) -> Mapping[str, Node]:
        domains = await self._load_domains({address.domain for address in addresses})
        keys: dict[str, tuple[str, ...]] = {}
        for address in addresses:
            domain = domains[address.domain]
            keys[address.key] = (
                aliases.candidates(address.local_part.lower(), domain.name, self._delimiter) if domain else ()
            )
        entries = await self._load_entries(dict.fromkeys(key for several in keys.values() for key in several))
        return {address.key: self._node(address, keys[address.key], entries) for address in addresses}

    def _node(self, address: Address, keys: Sequence[str], entries: Mapping[str, _Answer]) -> Node:
        if not keys:
            # At the server's own name there is only the postmaster, whom `resolve` finds.
            return aliases.UNKNOWN if address.domain == self._hostname else aliases.EXTERNAL
        for key in keys:
            entry = _known(entries[key])  # what comes after a hit may well be unknown
            if entry:
                account = entry.user.account if entry.user else None
                if entry.destinations is None:
                    return Node(account)
                return Node(account, tuple(aliases.destination(text, address) for text in entry.destinations))
        return aliases.UNKNOWN

    # Rows

    async def _user(self, email: str) -> _User | None:
        try:
            address = parse_address(email)
        except AddressError:
            return None
        domain = await self._domain(address.domain)
        if domain is None:
            return None
        key = f"{address.local_part.lower()}@{domain.name}"
        entry = _known((await self._load_entries((key,)))[key])
        return entry.user if entry else None

    async def _domain(self, name: str) -> _Domain | None:
        cached = self._domains.get(name)
        if cached is not MISS:
            return cached
        return (await self._load_domains((name,)))[name]

    async def _load_domains(self, names: Sequence[str] | set[str]) -> dict[str, _Domain | None]:
        found: dict[str, _Domain | None] = {}
        missing = _cached(self._domains, names, found)
        if not missing:
            return found
        forms = {name: _forms(name) for name in missing}
        generation = self._generation
        try:
            rows = await self._reader.domains([form for several in forms.values() for form in several])
        except DirectoryUnavailable as e:
            _add_stale(self._domains, missing, found)
            for name in missing:
                if name not in found:
                    raise DirectoryUnavailable(f"{e.reason}; {name} is not remembered") from None
            return found
        by_name = {str(row[1]).lower(): _Domain(int(row[0]), str(row[1]).lower()) for row in rows}
        for name in missing:
            domain = next((by_name[form] for form in forms[name] if form in by_name), None)
            found[name] = domain
            if generation == self._generation:
                self._domains.put(name, domain)
        return found

    async def _load_entries(self, keys: Iterable[str]) -> Mapping[str, _Answer]:
        found: dict[str, _Entry | None] = {}
        missing = _cached(self._entries, keys, found)
        if not missing:
            return found
        generation = self._generation
        try:
            users, alias_rows = await self._reader.addresses(missing)
        except DirectoryUnavailable as e:
            _add_stale(self._entries, missing, found)
            return found | {key: e for key in missing if key not in found}
        user_by_key = {user.account.email: user for user in map(self._user_of, users)}
        destinations = self._destinations(alias_rows)
        for key in missing:
            user, targets = user_by_key.get(key), destinations.get(key)
            entry = _Entry(user, targets) if user or targets is not None else None
            found[key] = entry
            if generation == self._generation:
                self._entries.put(key, entry)
        return found

    def _destinations(self, rows: Sequence[Row]) -> dict[str, tuple[str, ...]]:
        """Destinations by source. An old installation may have several rows of one source: they add up."""
        by_source: dict[str, tuple[str, ...]] = {}
        for source, text in rows:
            good, bad = aliases.split_destinations(str(text))
            if bad:
                self._warn("alias_destination_invalid", str(source), f"not an address: {bad[0]}")
            key = str(source).strip().lower()
            by_source[key] = tuple(dict.fromkeys((*by_source.get(key, ()), *good)))
        return by_source

    def _warn(self, event: str, rcpt_to: str, reason: str) -> None:
        if (rcpt_to, reason) not in self._warned and len(self._warned) < _MAX_WARNINGS:
            self._warned.add((rcpt_to, reason))
            self._log.warning(event, rcpt_to=rcpt_to, reason=reason)

    def _user_of(self, row: Row) -> _User:
        user_id, email, password, settings_email, octets, messages = row
        email = str(email).strip().lower()
        ours = str(settings_email).lower() == email  # else of a former user with this number
        octets = self._default_quota_octets if octets is None or not ours else octets
        messages = self._default_quota_messages if messages is None or not ours else messages
        local_part, _, domain = email.rpartition("@")
        account = Account(int(user_id), email, domain, local_part, int(octets), int(messages))
        return _User(account, str(password).strip())


def _cache(database: Database, _of: type[_V]) -> TtlCache[_V]:
    return TtlCache(
        positive_s=database.cache_s,
        negative_s=database.negative_cache_s,
        stale_s=database.stale_cache_s,
        max_entries=database.cache_entries,
    )


def _cached(cache: TtlCache[_V], keys: Iterable[str], found: dict[str, _V | None]) -> list[str]:
    """Put what the cache knows into `found`; returns the keys it does not know."""
    missing = []
    for key in keys:
        value = cache.get(key)
        if value is MISS:
            missing.append(key)
        else:
            found[key] = value
    return missing


def _add_stale(cache: TtlCache[_V], missing: Sequence[str], found: dict[str, _V | None]) -> None:
    for key in missing:
        stale = cache.stale(key)
        if stale is not None:
            found[key] = stale


def _known(answer: _Answer) -> _Entry | None:
    if isinstance(answer, DirectoryUnavailable):
        raise DirectoryUnavailable(answer.reason)
    return answer


def _forms(domain: str) -> tuple[str, ...]:
    """A domain in the forms a table may have: as given, A-labels, U-labels."""
    forms = [domain.lower()]
    try:
        if not domain.isascii():
            forms.append(domain_to_ascii(domain))
        elif "xn--" in forms[0]:
            forms.append(idna.decode(forms[0]))
    except (AddressError, idna.IDNAError):
        pass  # then it has no other form
    return tuple(forms)

"""Every setting, with its type, default and unit. docs/settings.md and config/pymx.toml are generated from this file.

The docstring of each section describes it; the comment text of a key is the `description` in its metadata. Names end
in their unit: `_s` seconds, `_octets`, `_mb`. Values are checked for type by the loader and against each other by
`pymx.config.check`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

Positive = Annotated[int, Meta(ge=1)]
NonNegative = Annotated[int, Meta(ge=0)]
BUILT_IN_PROVIDERS = ("google", "yahoo", "microsoft-consumer", "microsoft-365", "apple", "proton", "gmx")


def _doc(text: str) -> Meta:
    return Meta(description=text)


class Database(Struct, forbid_unknown_fields=True, frozen=True):
    """Where domains, users and aliases are."""

    url: Annotated[str, _doc("sqlite:///PATH or mysql://USER:PASSWORD@HOST[:PORT]/NAME[?unix_socket=PATH]")] = (
        "sqlite:////var/lib/pymx/pymx.sqlite"
    )
    url_file: Annotated[str, _doc("a file that holds the url, for secrets; empty = use url")] = ""
    url_credential: Annotated[
        str, _doc("instead of url_file: name of a systemd credential (LoadCredential=) with the url")
    ] = ""
    pool_size: Annotated[Positive, _doc("connections kept open to MariaDB, per process")] = 4
    cache_s: Annotated[NonNegative, _doc("how long a found recipient or account is remembered")] = 60
    negative_cache_s: Annotated[NonNegative, _doc("how long an unknown one is")] = 10
    stale_cache_s: Annotated[
        NonNegative, _doc("how much longer a found one is used while the database does not answer")
    ] = 3600
    cache_entries: Annotated[Positive, _doc("entries in that cache, per process")] = 20_000
    timeout_s: Annotated[Positive, _doc("wait for an answer of the database")] = 5


class Mail(Struct, forbid_unknown_fields=True, frozen=True):
    """The mailboxes on disk."""

    root: Annotated[str, _doc("mail lies in <root>/<domain>/<local-part>/")] = "/var/vmail"
    layout: Annotated[Literal["maildir++", "fs"], _doc("folder layout, as the old server had it")] = "maildir++"
    separator: Annotated[str, _doc("hierarchy separator that clients see; . or /")] = "."
    prefix: Annotated[str, _doc("namespace prefix that clients see, such as INBOX.; empty = none")] = ""
    index_dir: Annotated[str, _doc("where the index caches go; empty = beside the mail")] = ""
    control_dir: Annotated[
        str, _doc("Dovecot's CONTROL= directory if it had one, such as /var/control/%d/%n; empty = beside the mail")
    ] = ""
    max_message_octets: Annotated[Positive, _doc("largest message accepted, in or out")] = 52_428_800
    subaddress_delimiter: Annotated[str, _doc("alice+shop@ goes to alice@; empty = off")] = "+"
    default_quota_mb: Annotated[NonNegative, _doc("mailbox limit in MiB where none is set; 0 = unlimited")] = 0
    default_quota_messages: Annotated[
        NonNegative, _doc("mailbox limit in messages where none is set; 0 = unlimited")
    ] = 0
    folders: Annotated[
        dict[str, str], _doc("folders made and subscribed at first login, with their special use (RFC 6154)")
    ] = field(
        default_factory=lambda: {
            "Drafts": "\\Drafts",
            "Sent": "\\Sent",
            "Junk": "\\Junk",
            "Trash": "\\Trash",
            "Archive": "\\Archive",
        }
    )
    keep_removed_days: Annotated[NonNegative, _doc("how long the mail of a removed user is kept under .removed")] = 30
    fulltext: Annotated[
        bool, _doc("index texts of those who search in them; off for one account: pymxctl mailbox fulltext off")
    ] = True
    fulltext_max_percent: Annotated[
        Positive, _doc("largest full-text index, of what the account's mail takes (but up to 64 MiB in any case)")
    ] = 30
    threads: Annotated[Positive, _doc("threads for deliveries and commands, per process")] = 4
    bulk_threads: Annotated[Positive, _doc("threads for long mailbox work, per process")] = 2


class Accounts(Struct, forbid_unknown_fields=True, frozen=True):
    """Logins and addresses."""

    postmaster: Annotated[str, _doc("where postmaster@ and abuse@ go when nothing else says so")] = ""
    bcrypt_cost: Annotated[
        Annotated[int, Meta(ge=4, le=16)], _doc("cost of new passwords; each step doubles the time")
    ] = 10
    login_cache_s: Annotated[NonNegative, _doc("how long a verified password is remembered, in memory only")] = 600
    password_threads: Annotated[Positive, _doc("password checks at the same time, per process")] = 2
    password_queue: Annotated[Positive, _doc("password checks waiting for their turn, per process")] = 100
    max_alias_depth: Annotated[Positive, _doc("alias to alias to alias …, then it is a loop")] = 10
    max_alias_targets: Annotated[Positive, _doc("addresses that one recipient may expand to")] = 100


class Tls(Struct, forbid_unknown_fields=True, frozen=True):
    """The server certificate, and TLS in general; further certificates lie in data_dir/tls (`pymxctl cert`)."""

    certificate: Annotated[
        str, _doc("PEM file with the chain; empty = what pymxctl cert install or [acme] put into data_dir/tls")
    ] = ""
    private_key: Annotated[str, _doc("PEM file with its key")] = ""
    minimum: Annotated[Literal["1.2", "1.3"], _doc("lowest TLS version")] = "1.2"
    max_handshakes: Annotated[Positive, _doc("handshakes in progress, per process and implicit-TLS listener")] = 500
    max_handshakes_per_ip: Annotated[
        Positive, _doc("of them from one address (IPv6: one /64; a /48: 4 times as many)")
    ] = 50


class Acme(Struct, forbid_unknown_fields=True, frozen=True):
    """Certificates from a certificate authority by ACME (RFC 8555); needs [web] listen to be reached at port 80."""

    enabled: Annotated[
        bool, _doc("get and renew them; whoever turns it on accepts the terms of service of the authority")
    ] = False
    directory_url: Annotated[str, _doc("the authority; default Let's Encrypt")] = (
        "https://acme-v02.api.letsencrypt.org/directory"
    )
    contact: Annotated[str, _doc("address for notices of the authority; empty = none")] = ""
    names: Annotated[list[str], _doc("further host names of this server, for its own certificate")] = field(
        default_factory=list
    )
    prefixes: Annotated[
        list[str], _doc("names under each of our domains that get a certificate, where they lead to this server")
    ] = field(default_factory=lambda: ["mta-sts", "autoconfig", "autodiscover"])
    key: Annotated[Literal["ec", "rsa"], _doc("kind of key: P-256, or RSA with 2048 bits for very old clients")] = "ec"
    keep_key: Annotated[bool, _doc("keep the key at renewals, so that TLSA records in DNS stay right")] = True
    ca_file: Annotated[str, _doc("trusted roots for the authority's own HTTPS; empty = the usual ones")] = ""
    timeout_s: Annotated[Positive, _doc("longest time for one certificate")] = 300
    check_interval_s: Annotated[
        Annotated[int, Meta(ge=60)], _doc("how often names and dates are looked at; renewed is at a third of the life")
    ] = 43_200
    retry_first_s: Annotated[Positive, _doc("wait after a failure; then four times as long each time, up to a day")] = (
        900
    )


class Smtp(Struct, forbid_unknown_fields=True, frozen=True):
    """Mail from other servers (port 25), and limits that hold for submission and LMTP too."""

    listen: Annotated[list[str], _doc("addresses")] = field(default_factory=lambda: ["0.0.0.0:25", "[::]:25"])
    max_connections: Annotated[Positive, _doc("sessions at the same time, per process and listener")] = 500
    max_connections_per_ip: Annotated[
        Positive, _doc("of them from one address (IPv6: one /64; a /48: 4 times as many)")
    ] = 50
    max_recipients: Annotated[Positive, _doc("recipients of one message")] = 100
    max_errors: Annotated[Positive, _doc("refused commands in one session, then 421")] = 20
    max_commands: Annotated[Positive, _doc("commands in one session, then 421")] = 10_000
    max_header_octets: Annotated[Positive, _doc("size of a message's header block")] = 1_048_576
    max_header_fields: Annotated[Positive, _doc("fields in a message's header block")] = 1000
    max_received: Annotated[Positive, _doc("Received fields in a message, then it is a loop")] = 100
    command_timeout_s: Annotated[Positive, _doc("wait for a command (RFC 5321 s. 4.5.3.2.7)")] = 300
    data_timeout_s: Annotated[Positive, _doc("wait for the next block of a message")] = 180
    message_timeout_s: Annotated[Positive, _doc("longest time for one message to come in")] = 3600
    session_timeout_s: Annotated[Positive, _doc("longest session, but for a message on its way")] = 3600
    greeting_wait_ms: Annotated[
        NonNegative, _doc("pause before the greeting on port 25: who can't wait for it is no mail server; 0 = none")
    ] = 100
    min_data_rate_octets: Annotated[NonNegative, _doc("slowest message transfer in octets a second, over a minute")] = (
        100
    )
    memory_octets: Annotated[Positive, _doc("a message body is in memory up to this size, in a file above it")] = (
        262_144
    )


class Submission(Struct, forbid_unknown_fields=True, frozen=True):
    """Mail from our own users."""

    listen_tls: Annotated[list[str], _doc("addresses with implicit TLS")] = field(
        default_factory=lambda: ["0.0.0.0:465", "[::]:465"]
    )
    listen_starttls: Annotated[list[str], _doc("addresses with STARTTLS")] = field(
        default_factory=lambda: ["0.0.0.0:587", "[::]:587"]
    )
    strip_fields: Annotated[list[str], _doc("header fields taken out of submitted mail")] = field(
        default_factory=lambda: ["Bcc", "Received", "X-Originating-IP", "X-Mailer", "User-Agent"]
    )
    repair: Annotated[
        bool, _doc("mend bare line ends, long lines and undeclared 8-bit headers instead of refusing")
    ] = True


class Imap(Struct, forbid_unknown_fields=True, frozen=True):
    """Mailbox access."""

    listen_tls: Annotated[list[str], _doc("addresses with implicit TLS")] = field(
        default_factory=lambda: ["0.0.0.0:993", "[::]:993"]
    )
    listen_starttls: Annotated[list[str], _doc("addresses with STARTTLS, for clients that need port 143")] = field(
        default_factory=list
    )
    max_connections: Annotated[Positive, _doc("sessions at the same time, per process and listener")] = 5000
    max_connections_per_ip: Annotated[
        Positive, _doc("of them from one address (IPv6: one /64; a /48: 4 times as many)")
    ] = 100
    login_timeout_s: Annotated[Positive, _doc("time for a login")] = 60
    idle_timeout_s: Annotated[
        Annotated[int, Meta(ge=1800)], _doc("silence before a session ends (RFC 3501 s. 5.4: at least 30 min)")
    ] = 1860
    max_line_octets: Annotated[Positive, _doc("length of a command without its literals")] = 65_536
    max_errors: Annotated[Positive, _doc("bad commands in a row, or failed logins, then BYE")] = 20
    max_login_octets: Annotated[Positive, _doc("length of a command, and of what waits behind it, before login")] = (
        32_768
    )
    max_waiting_octets: Annotated[Positive, _doc("further commands taken in while one runs, per session")] = 131_072
    max_swallowed_octets: Annotated[
        Positive, _doc("a refused literal is read up to this size, or to max_message_octets; above, the session ends")
    ] = 209_715_200
    max_header_octets: Annotated[Positive, _doc("size of the header block of a message being appended")] = 1_048_576
    append_memory_octets: Annotated[
        Positive, _doc("a message being appended is in memory up to this size, in a file above it")
    ] = 65_536
    max_kept_octets: Annotated[
        NonNegative, _doc("memory for messages that are being fetched in pieces, per process and listener")
    ] = 67_108_864
    background_commands: Annotated[
        NonNegative,
        _doc("background fetches of phones are put off while more commands than this run, per process and listener"),
    ] = 50
    max_notify_mailboxes: Annotated[Positive, _doc("mailboxes that a session may watch with NOTIFY (RFC 5465)")] = 1000
    max_metadata_value_octets: Annotated[Positive, _doc("size of one value of METADATA (RFC 5464)")] = 65_536
    max_metadata_octets: Annotated[Positive, _doc("size of all METADATA of an account, names included")] = 1_048_576


class Lmtp(Struct, forbid_unknown_fields=True, frozen=True):
    """Local delivery for other programs (RFC 2033)."""

    listen: Annotated[list[str], _doc("unix:PATH or an address; empty = off")] = field(default_factory=list)


class Control(Struct, forbid_unknown_fields=True, frozen=True):
    """The socket that pymxctl talks to."""

    socket: Annotated[str, _doc("path; its directory is made with mode 0700")] = "/run/pymx/control.sock"


class Status(Struct, forbid_unknown_fields=True, frozen=True):
    """For monitoring: /metrics for Prometheus and /healthz, over HTTP without a login."""

    listen: Annotated[
        list[str], _doc("loopback or private addresses, such as 127.0.0.1:9825, or unix:PATH; empty = off")
    ] = field(default_factory=list)


class Web(Struct, forbid_unknown_fields=True, frozen=True):
    """Public pages: ACME challenges, the MTA-STS policy, and what mail clients ask for to set themselves up."""

    listen: Annotated[list[str], _doc("addresses for HTTP, such as 0.0.0.0:80; empty = off")] = field(
        default_factory=list
    )
    listen_tls: Annotated[list[str], _doc("addresses for HTTPS, such as 0.0.0.0:443; empty = off")] = field(
        default_factory=list
    )
    max_connections: Annotated[Positive, _doc("connections at the same time, per listener")] = 200
    max_connections_per_ip: Annotated[
        Positive, _doc("of them from one address (IPv6: one /64; a /48: 4 times as many)")
    ] = 20


class MtaSts(Struct, forbid_unknown_fields=True, frozen=True):
    """The MTA-STS policy (RFC 8461) of our own domains, served by [web] on mta-sts.DOMAIN."""

    mode: Annotated[
        Literal["testing", "enforce", "none"],
        _doc("enforce: other servers deliver only over TLS with a valid certificate; testing: they report"),
    ] = "testing"
    mx: Annotated[list[str], _doc("names of the domains' mail servers; empty = the hostname")] = field(
        default_factory=list
    )
    max_age_s: Annotated[
        Annotated[int, Meta(ge=86_400, le=31_557_600)], _doc("how long other servers remember the policy")
    ] = 604_800


class Dns(Struct, forbid_unknown_fields=True, frozen=True):
    """Name resolution."""

    nameservers: Annotated[list[str], _doc("ADDRESS or ADDRESS:PORT; empty = the system's")] = field(
        default_factory=list
    )
    authenticated: Annotated[
        Literal["auto", "yes", "no"],
        _doc("believe their DNSSEC validation (AD bit), which DANE needs; auto = when all of them are on loopback"),
    ] = "auto"
    timeout_s: Annotated[Positive, _doc("wait for one answer, all servers and tries included")] = 10
    cache_entries: Annotated[Positive, _doc("answers remembered, per process")] = 10_000
    max_ttl_s: Annotated[Positive, _doc("longest time an answer is remembered")] = 3600


class Limits(Struct, forbid_unknown_fields=True, frozen=True):
    """How much one address (IPv6: one /64) and one account may do; docs/operations.md says what happens then."""

    trusted: Annotated[
        list[str], _doc("addresses and networks never rate-limited or banned, and whose mail is not checked")
    ] = field(default_factory=list)
    ban_after: Annotated[
        NonNegative, _doc("different wrong passwords from one address, then it can't log in for a while; 0 = never")
    ] = 10
    ban_after_ipv6_48: Annotated[
        NonNegative, _doc("the same from all of an IPv6 /48, then nobody new can log in from there; 0 = never")
    ] = 100
    ban_window_s: Annotated[Positive, _doc("how long a wrong password counts")] = 21_600
    ban_first_s: Annotated[Positive, _doc("length of an address's first ban; each further one is twice as long")] = 600
    ban_max_s: Annotated[Positive, _doc("longest ban")] = 86_400
    good_login_days: Annotated[
        NonNegative, _doc("so long after a good login an address is never kept from that account; 0 = not at all")
    ] = 7
    slow_max_s: Annotated[
        NonNegative, _doc("longest wait before the answer to a wrong password; begins at half a second; 0 = none")
    ] = 10
    max_slowed: Annotated[NonNegative, _doc("such answers held back at the same time, per process")] = 100
    connections_per_minute: Annotated[
        NonNegative, _doc("new connections from one address to all ports together; 0 = unlimited")
    ] = 120
    messages_per_hour: Annotated[NonNegative, _doc("messages from one address to port 25; 0 = unlimited")] = 3000
    recipients_per_hour: Annotated[NonNegative, _doc("recipients of them; 0 = unlimited")] = 6000
    unknown_recipients_per_hour: Annotated[
        NonNegative, _doc("unknown recipients tried from one address at port 25; 0 = unlimited")
    ] = 100
    account_messages_per_day: Annotated[
        NonNegative, _doc("messages that one account may send in 24 hours; 0 = unlimited")
    ] = 1000
    account_new_recipients_per_day: Annotated[
        NonNegative, _doc("addresses elsewhere that it never wrote to before, in 24 hours; 0 = unlimited")
    ] = 300


class Checks(Struct, forbid_unknown_fields=True, frozen=True):
    """What mail from other servers is judged by; docs/checks.md says what each check does."""

    spf: Annotated[bool, _doc("may the host send for the domain of MAIL FROM (RFC 7208)")] = True
    dkim: Annotated[bool, _doc("who signed the message (RFC 6376)")] = True
    dmarc: Annotated[bool, _doc("does the domain in From own it, else its policy (RFC 7489); needs spf and dkim")] = (
        True
    )
    arc: Annotated[bool, _doc("what forwarders saw before (RFC 8617); counts only with trusted_sealers")] = True
    iprev: Annotated[bool, _doc("has the host a name that leads back to it; a hint")] = True
    helo: Annotated[bool, _doc("is the name in HELO one; a hint")] = True
    early_talker: Annotated[bool, _doc("did the host talk before our greeting; a hint")] = True
    dnsbl: Annotated[
        list[str],
        _doc("lists of bad hosts (RFC 5782): ZONE=WEIGHT, or ZONE=127.0.0.[2..4;9]*WEIGHT for some answers"),
    ] = field(default_factory=list)
    dnswl: Annotated[list[str], _doc("lists of good hosts, the same way; the weight is taken off the score")] = field(
        default_factory=list
    )
    trusted_sealers: Annotated[
        list[str], _doc("domains whose ARC seal lets forwarded mail through DMARC, such as of mailing lists")
    ] = field(default_factory=list)
    greylist: Annotated[bool, _doc("tell senders with hints against them to come back later (RFC 6647)")] = False
    greylist_score: Annotated[Positive, _doc("sum of the hints' weights from which a sender is told so")] = 1
    greylist_delay_s: Annotated[Positive, _doc("how long a sender has to stay away")] = 300
    greylist_window_s: Annotated[Positive, _doc("until when he must have come back")] = 172_800
    greylist_remember_s: Annotated[Positive, _doc("how long one who came back is known, from his last message on")] = (
        3_110_400
    )
    junk_score: Annotated[Positive, _doc("sum of the hints' weights from which mail goes to Junk")] = 5
    timeout_s: Annotated[Positive, _doc("longest wait for all checks of a message, after its end")] = 10


class Rspamd(Struct, forbid_unknown_fields=True, frozen=True):
    """The spam filter rspamd, if there is one."""

    url: Annotated[str, _doc("its normal worker, such as http://127.0.0.1:11333; empty = off")] = ""
    controller_url: Annotated[
        str,
        _doc(
            "its controller, such as http://127.0.0.1:11334, which learns what users move to and from Junk; empty = off"
        ),
    ] = ""
    password_file: Annotated[str, _doc("file with the password of worker and controller; empty = none")] = ""
    password_credential: Annotated[
        str, _doc("instead of password_file: name of a systemd credential (LoadCredential=) with the password")
    ] = ""
    timeout_s: Annotated[Positive, _doc("wait for its answer; at most [checks] timeout_s")] = 8
    max_octets: Annotated[Positive, _doc("larger messages are not shown to it; at most its max_message")] = 52_428_800
    when_down: Annotated[
        Literal["accept", "junk", "defer"], _doc("what becomes of mail while it gives no usable answer")
    ] = "accept"


class Junk(Struct, forbid_unknown_fields=True, frozen=True):
    """The server's own junk filter, for those who have no rspamd: each account's learns from what its user does."""

    own_filter: Annotated[
        bool, _doc("file what looks like earlier junk; off in any case while [rspamd] url is set")
    ] = True
    min_learned: Annotated[
        Positive,
        _doc("messages of junk, and as many others, that an account must have learned before it says anything"),
    ] = 50
    threshold_percent: Annotated[
        Annotated[int, Meta(ge=51, le=100)], _doc("how sure it must be to file a message into Junk")
    ] = 95
    max_tokens: Annotated[
        Annotated[int, Meta(ge=1000)], _doc("words an account's filter remembers, 30 octets each; then the oldest go")
    ] = 200_000


class Route(Struct, forbid_unknown_fields=True, frozen=True):
    """One smarthost."""

    domain: Annotated[str, _doc("recipient domain, or *")]
    host: Annotated[str, _doc("name or address of the next hop")]
    port: Annotated[Annotated[int, Meta(ge=1, le=65535)], _doc("its port")] = 25
    tls: Annotated[
        Literal["none", "opportunistic", "verified", "implicit"], _doc("implicit also verifies the certificate")
    ] = "opportunistic"
    username: Annotated[str, _doc("login; empty = none")] = ""
    password_file: Annotated[str, _doc("file with the password")] = ""
    password_credential: Annotated[
        str, _doc("instead of password_file: name of a systemd credential (LoadCredential=) with the password")
    ] = ""
    ca_file: Annotated[str, _doc("trusted roots for verified and implicit; empty = the system's")] = ""


class Provider(Struct, forbid_unknown_fields=True, frozen=True):
    """Limits for one provider, in place of or beside those that are built in; 0 = as built in, or as for everybody."""

    name: Annotated[
        str, _doc("google, yahoo, microsoft-consumer, microsoft-365, apple, proton, gmx, or a name of your own")
    ]
    mx: Annotated[
        list[str], _doc("its mail servers: names, or domains such as .example.net; not needed for a built-in one")
    ] = field(default_factory=list)
    max_connections: Annotated[NonNegative, _doc("connections at the same time")] = 0
    max_messages_per_connection: Annotated[NonNegative, _doc("then a new connection is made")] = 0
    messages_per_minute: Annotated[NonNegative, _doc("messages in any minute; 0 = no limit")] = 0
    messages_per_hour: Annotated[NonNegative, _doc("messages in any hour; 0 = no limit")] = 0


class Outbound(Struct, forbid_unknown_fields=True, frozen=True):
    """The queue and delivery to other servers."""

    route: Annotated[
        list[Route], _doc("smarthosts; the first whose domain fits is taken, then others of that same domain in order")
    ] = field(default_factory=list)
    provider: Annotated[list[Provider], _doc("limits for providers, told by their mail servers")] = field(
        default_factory=list
    )
    port: Annotated[Annotated[int, Meta(ge=1, le=65535)], _doc("port of remote servers")] = 25
    allow_private: Annotated[bool, _doc("deliver to servers on loopback and private addresses; for tests")] = False
    source_addresses: Annotated[
        list[str], _doc("local addresses to send from, for a destination always the same; empty = the system's choice")
    ] = field(default_factory=list)
    dane: Annotated[bool, _doc("check remote servers by their TLSA records (RFC 7672)")] = True
    mta_sts: Annotated[bool, _doc("fetch and follow MTA-STS policies of remote domains (RFC 8461)")] = True
    ca_file: Annotated[str, _doc("trusted roots for MTA-STS; empty = the system's")] = ""
    retry_first_s: Annotated[
        Positive, _doc("wait before the first retry; then twice as long each time, with jitter")
    ] = field(default=300, name="retry_first")
    retry_max_s: Annotated[Positive, _doc("longest wait between tries")] = 14_400
    lifetime_s: Annotated[Positive, _doc("how long delivery is tried before the sender is told that it failed")] = (
        432_000
    )
    delay_notice_s: Annotated[NonNegative, _doc("when the sender is told that a message is late; 0 = never")] = 14_400
    max_deliveries: Annotated[Positive, _doc("deliveries at the same time")] = 50
    max_per_destination: Annotated[
        Positive, _doc("of them to one destination; it begins with two, and grows with success")
    ] = 5
    connect_timeout_s: Annotated[Positive, _doc("wait for a connection to one address")] = 30
    command_timeout_s: Annotated[Positive, _doc("wait for a reply")] = 300
    data_timeout_s: Annotated[Positive, _doc("wait for the reply to the final dot (RFC 5321: 10 min)")] = 600
    keep_connection_s: Annotated[NonNegative, _doc("how long an idle connection is kept for the next message")] = 5
    max_messages_per_connection: Annotated[Positive, _doc("then a new connection is made")] = 100
    max_queue_messages: Annotated[Positive, _doc("messages in the queue, then 452")] = 200_000
    warm_up_since: Annotated[
        str, _doc("YYYY-MM-DD: the day from which a new address sends; from then on few a day, and more; empty = off")
    ] = ""
    warm_up_first: Annotated[Positive, _doc("messages to each provider or other destination on that first day")] = 50
    warm_up_growth: Annotated[NonNegative, _doc("percent more on each further day")] = 50
    warm_up_days: Annotated[Positive, _doc("after as many days there is no ceiling any more")] = 30


class Dkim(Struct, forbid_unknown_fields=True, frozen=True):
    """Signing keys; docs/operations.md says how one is replaced."""

    overlap_s: Annotated[Positive, _doc("how long a replaced key's record must stay in DNS, for mail on its way")] = (
        604_800
    )
    settle_s: Annotated[
        NonNegative, _doc("how long a new key's record must have been seen in DNS before it signs: secondaries lag")
    ] = 3600
    check_interval_s: Annotated[Positive, _doc("how often DNS is asked for the records of keys")] = 3600


class Forwarding(Struct, forbid_unknown_fields=True, frozen=True):
    """Mail for aliases that lead to other servers."""

    srs: Annotated[bool, _doc("rewrite foreign envelope senders (SRS), so that SPF passes at the next server")] = True
    srs_domain: Annotated[
        str, _doc("domain of rewritten senders, its MX must be this server; empty = that of the forwarding address")
    ] = ""
    srs_secret_file: Annotated[
        str, _doc("its secrets, one a line, such as postsrsd's; empty = srs.secret in data_dir, made when needed")
    ] = ""
    srs_secret_credential: Annotated[
        str, _doc("instead of srs_secret_file: name of a systemd credential (LoadCredential=) with the secrets")
    ] = ""
    srs_days: Annotated[
        Annotated[int, Meta(ge=1, le=365)], _doc("how long a rewritten sender leads back to the original one")
    ] = 21
    max_senders: Annotated[
        Positive, _doc("senders too long to be rewritten that are remembered, then the oldest go")
    ] = 1_000_000
    arc_seal: Annotated[bool, _doc("seal with the forwarding domain's DKIM key (RFC 8617); needs [checks] arc")] = True
    refuse_dmarc_fail: Annotated[
        bool, _doc("forward nothing that fails DMARC; false = only what the domain wants refused or in Junk stays")
    ] = True
    max_passes: Annotated[Positive, _doc("times that a message may have passed this server, then it is a loop")] = 5
    in_session_s: Annotated[
        NonNegative,
        _doc("wait for what the next server says, before mail for one address elsewhere is answered; 0 = don't"),
    ] = 5
    remember_refusal_s: Annotated[
        NonNegative, _doc("how long an address that was refused as unknown is refused here at once; 0 = not at all")
    ] = 3600


class Reports(Struct, forbid_unknown_fields=True, frozen=True):
    """Daily reports between mail servers: DMARC (RFC 7489) and TLS (RFC 8460), to others and from them."""

    dmarc: Annotated[
        bool, _doc("count what mail from elsewhere does under DMARC, and report it to the domains that ask for it")
    ] = False
    tls: Annotated[bool, _doc("report to domains that ask for it how TLS to their servers went")] = False
    sender: Annotated[
        str, _doc("From address of reports; its domain needs a DKIM key. empty = postmaster@ the hostname")
    ] = ""
    organization: Annotated[str, _doc("who reports, in words; empty = the hostname")] = ""
    max_per_day: Annotated[Positive, _doc("reports sent in a day, then the rest waits")] = 1000
    receive: Annotated[
        bool, _doc("read reports about our domains when they arrive; they are delivered all the same")
    ] = True
    addresses: Annotated[
        list[str],
        _doc("mail to these is looked into even if its header doesn't look like a report; local parts or addresses"),
    ] = field(default_factory=lambda: ["dmarc-reports", "tls-reports"])
    keep_days: Annotated[Positive, _doc("how long received reports are kept")] = 90
    max_mb: Annotated[
        Positive, _doc("size of the reports database; then the oldest reports go, and counting stops")
    ] = 200


class Backup(Struct, forbid_unknown_fields=True, frozen=True):
    """Backups by `pymxctl backup create`, which a timer runs every night; docs/operations.md says how to come back."""

    target: Annotated[
        str, _doc("a directory on another disk, or borg:REPOSITORY (such as borg:ssh://host/./pymx); empty = none")
    ] = ""
    passphrase_file: Annotated[
        str, _doc("file with the passphrase of the Borg repository; empty = BORG_PASSPHRASE or BORG_PASSCOMMAND")
    ] = ""
    passphrase_credential: Annotated[
        str, _doc("instead of passphrase_file: name of a systemd credential (LoadCredential=) of pymx-backup.service")
    ] = ""
    with_keys: Annotated[bool, _doc("DKIM and TLS keys and other secrets also into a backup that is not encrypted")] = (
        False
    )
    keep_daily: Annotated[NonNegative, _doc("days of which the last backup is kept")] = 7
    keep_weekly: Annotated[NonNegative, _doc("weeks of which the last backup is kept")] = 4
    keep_monthly: Annotated[NonNegative, _doc("months of which the last backup is kept")] = 6


class Logging(Struct, forbid_unknown_fields=True, frozen=True):
    """The log, on standard error."""

    level: Annotated[Literal["debug", "info", "warning", "error"], _doc("least severe level written")] = "info"
    format: Annotated[Literal["logfmt", "json"], _doc("one line per event in either form")] = "logfmt"


class Events(Struct, forbid_unknown_fields=True, frozen=True):
    """What happened to each message, for `pymxctl trace` and `pymxctl log`."""

    keep_days: Annotated[NonNegative, _doc("how long it is kept; 0 = nothing is")] = 30
    max_mb: Annotated[Positive, _doc("size of the store in MiB, then the oldest goes; a message takes 1.5 KiB")] = 256


class Config(Struct, forbid_unknown_fields=True, frozen=True):
    """The server as a whole."""

    hostname: Annotated[str, _doc("the name that the server gives in SMTP and that its PTR record has")] = ""
    data_dir: Annotated[str, _doc("queue, keys, state")] = "/var/lib/pymx"
    runtime_dir: Annotated[str, _doc("sockets between the processes; empty = the control socket's directory")] = ""
    workers: Annotated[Literal["auto"] | Positive, _doc("processes for sessions; auto = one per CPU")] = "auto"
    user: Annotated[str, _doc("who the server becomes after it has bound its ports; none = it stays who it is")] = (
        "vmail"
    )
    event_loop: Annotated[Literal["uvloop", "asyncio"], _doc("uvloop falls back to asyncio where it is missing")] = (
        "uvloop"
    )
    drain_s: Annotated[NonNegative, _doc("time for sessions to end after SIGTERM")] = 10
    hang_s: Annotated[
        NonNegative, _doc("a process whose event loop stands still for so long is killed and replaced; 0 = never")
    ] = 60
    database: Database = field(default_factory=Database)
    mail: Mail = field(default_factory=Mail)
    accounts: Accounts = field(default_factory=Accounts)
    tls: Tls = field(default_factory=Tls)
    acme: Acme = field(default_factory=Acme)
    smtp: Smtp = field(default_factory=Smtp)
    submission: Submission = field(default_factory=Submission)
    imap: Imap = field(default_factory=Imap)
    lmtp: Lmtp = field(default_factory=Lmtp)
    control: Control = field(default_factory=Control)
    status: Status = field(default_factory=Status)
    web: Web = field(default_factory=Web)
    mta_sts: MtaSts = field(default_factory=MtaSts)
    dns: Dns = field(default_factory=Dns)
    limits: Limits = field(default_factory=Limits)
    checks: Checks = field(default_factory=Checks)
    rspamd: Rspamd = field(default_factory=Rspamd)
    junk: Junk = field(default_factory=Junk)
    outbound: Outbound = field(default_factory=Outbound)
    dkim: Dkim = field(default_factory=Dkim)
    forwarding: Forwarding = field(default_factory=Forwarding)
    reports: Reports = field(default_factory=Reports)
    backup: Backup = field(default_factory=Backup)
    log: Logging = field(default_factory=Logging)
    events: Events = field(default_factory=Events)

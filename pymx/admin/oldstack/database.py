"""The database of Postfix's maps and Dovecot's SQL file, as `[database] url`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from urllib.parse import quote

_WORD = re.compile(r"([a-z_]+)\s*=\s*(\"[^\"]*\"|'[^']*'|\S+)")


def sql_words(text: str) -> Iterator[tuple[str, str]]:
    """`host=… dbname=… user=… password=…` of Dovecot's connect."""
    for match in _WORD.finditer(text):
        yield match[1], match[2].strip("\"'")


def database_url(words: Mapping[str, str]) -> str:
    """`host` may be a name, a path, or Postfix's `unix:/path` and `inet:host:port`; the first of several."""
    hosts = (words.get("host") or words.get("hosts") or "localhost").replace(",", " ").split()
    host, port = hosts[0] if hosts else "localhost", words.get("port", "")
    query = ""
    if host.startswith("unix:") or host.startswith("/"):
        query, host = f"?unix_socket={quote(host.removeprefix('unix:'))}", "localhost"
    host = host.removeprefix("inet:")
    if host.count(":") == 1 and not port:
        host, _, port = host.partition(":")
    login = quote(words.get("user", ""), safe="")
    password = quote(words.get("password", ""), safe="")
    return f"mysql://{login}:{password}@{host}{':' + port if port else ''}/{words.get('dbname', '')}{query}"

"""Autodiscover: what Outlook asks for (MS-OXDSCLI, the "POX" form), and the probe of newer clients.

Only IMAP and SMTP are told. Exchange and ActiveSync never are: clients that are offered them (Outlook, Thunderbird,
phones) take them instead, and then fail. A request for their schema gets the protocol's error 601.

The request is XML from anybody: it is read by expat with no document type and so without entities, a few levels deep,
and only two elements of it are looked at. `RequestError` is everything else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from xml.parsers import expat
from xml.sax.saxutils import escape

from pymx.web.services import Service, Services

CONTENT_TYPE = "text/xml; charset=utf-8"
JSON = "application/json; charset=utf-8"
_RESPONSE = "http://schemas.microsoft.com/exchange/autodiscover/outlook/responseschema/2006a"
_ENVELOPE = "http://schemas.microsoft.com/exchange/autodiscover/responseschema/2006"
_MAX_DEPTH = 10
_MAX_TEXT = 512


class RequestError(ValueError):
    """It is no request that can be answered."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """`schema` is the response that the client can read; "" = it did not say."""

    email: str
    schema: str

    @property
    def answerable(self) -> bool:
        return self.schema in ("", _RESPONSE)


class _Reader:
    """Collects the text of the elements that matter, by local name."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        self._path: list[str] = []

    def start(self, name: str, _attributes: dict[str, str]) -> None:
        self._path.append(name.rpartition(" ")[2])
        if len(self._path) > _MAX_DEPTH:
            raise RequestError("nested too deep")

    def end(self, _name: str) -> None:
        self._path.pop()

    def text(self, data: str) -> None:
        name = self._path[-1]
        if name in ("EMailAddress", "AcceptableResponseSchema"):
            self.found[name] = self.found.get(name, "") + data
            if len(self.found[name]) > _MAX_TEXT:
                raise RequestError(f"{name} is too long")

    @staticmethod
    def doctype(*_arguments: object) -> None:
        raise RequestError("a document type is not allowed")


def read_request(body: bytes) -> Wanted:
    """What is asked for. Raises RequestError."""
    reader = _Reader()
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.text
    parser.StartDoctypeDeclHandler = reader.doctype
    try:
        parser.Parse(body, True)
    except (expat.ExpatError, LookupError, ValueError) as e:  # LookupError: an encoding that nobody knows
        raise RequestError(str(e)) from None
    email = reader.found.get("EMailAddress", "").strip()
    if not email:
        raise RequestError("no EMailAddress")
    return Wanted(email, reader.found.get("AcceptableResponseSchema", "").strip())


def settings(email: str, services: Services) -> bytes:
    """The answer: IMAP and SMTP, the first of each that the server has."""
    protocols = [line for kind, found in (("IMAP", services.imap), ("SMTP", services.submission)) for line in
                 (_protocol(kind, found[0], email) if found else ())]  # fmt: skip
    lines = [
        '<?xml version="1.0" encoding="utf-8"?>',
        f'<Autodiscover xmlns="{_ENVELOPE}">',
        f'  <Response xmlns="{_RESPONSE}">',
        "    <User>",
        f"      <DisplayName>{escape(email)}</DisplayName>",
        "    </User>",
        "    <Account>",
        "      <AccountType>email</AccountType>",
        "      <Action>settings</Action>",
        *("      " + line for line in protocols),
        "    </Account>",
        "  </Response>",
        "</Autodiscover>",
        "",
    ]
    return "\n".join(lines).encode()


def _protocol(kind: str, service: Service, email: str) -> Iterator[str]:
    yield "<Protocol>"
    yield f"  <Type>{kind}</Type>"
    yield f"  <Server>{escape(service.host)}</Server>"
    yield f"  <Port>{service.port}</Port>"
    yield "  <DomainRequired>off</DomainRequired>"
    yield f"  <LoginName>{escape(email)}</LoginName>"
    yield "  <SPA>off</SPA>"
    # SSL is implicit TLS only; Encryption, which newer versions read instead, knows both
    yield f"  <SSL>{'on' if service.implicit_tls else 'off'}</SSL>"
    yield f"  <Encryption>{'SSL' if service.implicit_tls else 'TLS'}</Encryption>"
    yield "  <AuthRequired>on</AuthRequired>"
    if kind == "SMTP":
        yield "  <UsePOPAuth>on</UsePOPAuth>"
        yield "  <SMTPLast>off</SMTPLast>"
    yield "</Protocol>"


def failure(code: int, message: str, *, time_of_day: str) -> bytes:
    """The protocol's own error: 600 the request is bad, 601 there is no provider for what it wants."""
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        f'<Autodiscover xmlns="{_ENVELOPE}">\n'
        "  <Response>\n"
        f'    <Error Time="{escape(time_of_day)}" Id="0">\n'
        f"      <ErrorCode>{code}</ErrorCode>\n"
        f"      <Message>{escape(message)}</Message>\n"
        "      <DebugData />\n"
        "    </Error>\n"
        "  </Response>\n"
        "</Autodiscover>\n"
    ).encode()


def probe(protocol: str, url: str) -> tuple[int, bytes]:
    """Status and body for /autodiscover/autodiscover.json: where a protocol is spoken, if it is."""
    if protocol.lower() == "autodiscoverv1":
        return 200, json.dumps({"Protocol": "AutodiscoverV1", "Url": url}).encode()
    return 400, json.dumps(
        {
            "ErrorCode": "ProtocolNotSupported",
            "ErrorMessage": "This server speaks IMAP and SMTP, and no other protocol.",
        }
    ).encode()

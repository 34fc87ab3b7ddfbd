"""Autoconfig: what Thunderbird (desktop and mobile), K-9, Evolution and others ask for.

They fetch https://autoconfig.<domain>/mail/config-v1.1.xml, then
https://<domain>/.well-known/autoconfig/mail/config-v1.1.xml (draft-ietf-mailmaint-autoconfig), desktop ones with
`?emailaddress=`, mobile ones without, and Evolution with a made-up local part. So the login is always the placeholder
%EMAILADDRESS%, which every client replaces by itself, and the domain and the names are written out, because not every
client replaces placeholders there.
"""

from __future__ import annotations

from collections.abc import Iterator
from xml.sax.saxutils import escape

from pymx.web.services import Service, Services

CONTENT_TYPE = "text/xml; charset=utf-8"
PATHS = ("/mail/config-v1.1.xml", "/.well-known/autoconfig/mail/config-v1.1.xml")


def client_config(domain: str, services: Services) -> bytes:
    """The document for addresses of `domain` (in A-labels)."""
    name = escape(domain)
    servers = [
        *(line for service in services.imap for line in _server("incomingServer", "imap", service)),
        *(line for service in services.submission for line in _server("outgoingServer", "smtp", service)),
    ]
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        '<clientConfig version="1.1">',
        f'  <emailProvider id="{name}">',
        f"    <domain>{name}</domain>",
        f"    <displayName>{name}</displayName>",
        f"    <displayShortName>{name}</displayShortName>",
        *("    " + line for line in servers),
        "  </emailProvider>",
        "</clientConfig>",
        "",
    ]
    return "\n".join(lines).encode()


def _server(element: str, kind: str, service: Service) -> Iterator[str]:
    yield f'<{element} type="{kind}">'
    yield f"  <hostname>{escape(service.host)}</hostname>"
    yield f"  <port>{service.port}</port>"
    yield f"  <socketType>{'SSL' if service.implicit_tls else 'STARTTLS'}</socketType>"
    yield "  <authentication>password-cleartext</authentication>"
    yield "  <username>%EMAILADDRESS%</username>"
    yield f"</{element}>"

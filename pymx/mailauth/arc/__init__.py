"""Authenticated Received Chain (RFC 8617): what forwarders saw before they changed the message."""

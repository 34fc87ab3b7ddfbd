"""DMARC (RFC 7489, RFC 9989): what the domain in From wants done with mail that is not its own."""

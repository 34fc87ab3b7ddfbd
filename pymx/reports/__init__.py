"""What mail servers tell each other about each other: DMARC aggregate reports (RFC 7489) and TLS reports (RFC 8460)."""

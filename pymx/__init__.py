"""pymx: a mail server appliance in pure Python (SMTP in and out, a durable queue, IMAP on Maildir)."""

__version__ = "0.1.0"

"""The composition root: builds every room, wires them, runs them.

`serve` binds the sockets and reads the certificate while it may (as root, or handed over by systemd), drops privileges,
and runs one process (`workers = 1`) or a supervisor with session workers and one runner. A process has a role:

- "session": the SMTP, submission, LMTP and IMAP listeners; accepts messages, delivers locally, enqueues the rest
- "runner": the queue with its deliveries, housekeeping, and the control socket
- "all": both

What processes share is on disk (accounts, Maildirs, queue); what they tell each other goes round as droppable notices
(pymx.net.peers). SIGTERM drains. SIGHUP reads the configuration again and reloads the certificate; what can only change
with a restart is named in the log.
"""

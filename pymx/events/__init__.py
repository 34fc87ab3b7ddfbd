"""What happened to each message, kept for `pymxctl trace` and `pymxctl log`.

    log.py ──tap──► feed (every process) ──datagrams──► recorder (the runner) ──► store (SQLite) ──► pymxctl

Nothing but the ordinary log calls feeds it. Mail never waits for it: a feed that can't get rid of its events drops them
and counts how many.
"""

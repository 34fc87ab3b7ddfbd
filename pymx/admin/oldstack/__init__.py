"""The configuration of a Postfix, Dovecot and rspamd that were here before, and what of it pymx can take over."""

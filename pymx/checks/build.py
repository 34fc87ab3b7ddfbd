"""The pipeline that the configuration asks for."""

from __future__ import annotations

from pathlib import Path

from pymx.checks.arc import Arc
from pymx.checks.check import Check
from pymx.checks.dkim import Dkim
from pymx.checks.dmarc import Dmarc
from pymx.checks.dnsbl import Dnsbl
from pymx.checks.early import EarlyTalker
from pymx.checks.greylist import Greylisting
from pymx.checks.helo import Helo
from pymx.checks.iprev import Iprev
from pymx.checks.patience import Patience
from pymx.checks.pipeline import Pipeline
from pymx.checks.spf import Spf
from pymx.config.model import Config, Rspamd
from pymx.config.secret import read_secret
from pymx.junk.greylist import NAME as GREYLIST
from pymx.junk.greylist import Greylist, Times
from pymx.mailauth.questions import Questions

# Shares of the time limit; see pymx.checks.pipeline
_SIGNATURE_SHARE = 0.4
_DOMAIN_SHARE = 0.3
_NAME_SHARE = 0.2


def build_pipeline(config: Config, resolver: Questions) -> Pipeline | None:
    """The checks that are on, in the order of their results; None when none is."""
    on = config.checks
    patience = Patience(resolver, on.timeout_s * _SIGNATURE_SHARE)
    checks: list[Check] = []
    if on.iprev:
        checks.append(Iprev(Patience(resolver, on.timeout_s * _NAME_SHARE)))
    if on.helo:
        checks.append(Helo(resolver, hostname=config.hostname))
    if on.early_talker:
        checks.append(EarlyTalker())
    if on.dnsbl:
        checks.append(Dnsbl(resolver, on.dnsbl))
    if on.dnswl:
        checks.append(Dnsbl(resolver, on.dnswl, good=True))
    if on.spf:
        checks.append(Spf(resolver, hostname=config.hostname))
    if on.dkim:
        checks.append(Dkim(patience))
    if on.arc:
        checks.append(Arc(patience))
    if on.dmarc:
        limit_s = on.timeout_s * _DOMAIN_SHARE
        checks.append(Dmarc(resolver, trusted_sealers=on.trusted_sealers, domain_timeout_s=limit_s))
    if config.rspamd.url:
        checks.append(_rspamd(config.rspamd, config.hostname))
    if on.greylist:
        times = Times(on.greylist_delay_s, on.greylist_window_s, on.greylist_remember_s)
        remembered = Greylist(Path(config.data_dir) / GREYLIST, times)
        checks.append(Greylisting(remembered, score=on.greylist_score))
    if not checks:
        return None
    return Pipeline(
        checks,
        hostname=config.hostname,
        timeout_s=on.timeout_s,
        junk_score=on.junk_score,
        trusted=config.limits.trusted,
    )


def _rspamd(settings: Rspamd, hostname: str) -> Check:
    """The check by rspamd. Raises SecretUnavailable."""
    # here, because it loads an HTTP library that nobody else needs
    from pymx.checks.rspamd import RspamdCheck
    from pymx.junk.rspamd import Rspamd as Client

    password = read_secret("[rspamd]", "password", settings.password_file, settings.password_credential).strip()
    client = Client(settings.url, password=password, timeout_s=settings.timeout_s, hostname=hostname)
    return RspamdCheck(client, when_down=settings.when_down, max_octets=settings.max_octets)

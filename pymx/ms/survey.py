"""`adopt --check`: what an account is that Dovecot has kept until now. Looks only, while Dovecot may be running."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from pymx.ms import dovecotindex, keywords
from pymx.ms.audit import Audit
from pymx.ms.dovecotplace import Place
from pymx.ms.fault import Finding, some
from pymx.ms.layout import Layout, is_mailbox
from pymx.ms.names import LETTERS

_MAX_DEPTH = 8
_NOT_FOLDERS = frozenset({b"cur", b"new", b"tmp"})


@dataclass(slots=True)
class Survey:
    """One account."""

    mailboxes: int = 0
    messages: int = 0
    layout: str = ""  # "maildir++", "fs", "both", or "" where there is only INBOX
    findings: list[Finding] = field(default_factory=list)


def layout_of(root: bytes) -> str:
    """Which layout the folders below `root` have."""
    dotted = plain = False
    with os.scandir(root) as entries:
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False) or entry.name.startswith((b"..", b".dovecot.")):
                continue
            if entry.name.startswith(b"."):
                dotted = dotted or is_mailbox(entry.path)
            elif entry.name not in _NOT_FOLDERS:
                plain = plain or _holds_mailbox(entry.path, _MAX_DEPTH)
    return "both" if dotted and plain else "maildir++" if dotted else "fs" if plain else ""


def _holds_mailbox(directory: bytes, depth: int) -> bool:
    if is_mailbox(directory):
        return True
    if not depth:
        return False
    with os.scandir(directory) as entries:
        below = [e.path for e in entries if e.is_dir(follow_symlinks=False) and not e.name.startswith(b".")]
    return any(_holds_mailbox(path, depth - 1) for path in below)


def survey(place: Place, layout: Layout, *, user: str, read_messages: bool = True) -> Survey:
    """Look at everything. Raises OSError only if the root can't be listed."""
    out = Survey(layout=layout_of(place.root))
    out.findings += _shape(place, layout, out.layout)
    if not is_mailbox(place.root) and not out.layout:
        return out
    out.findings += _foreign(place, layout)
    out.findings += Audit(place.root, layout, None, user=user, read_messages=read_messages, place=place).run()
    for levels in layout.mailboxes(place.root):
        path = layout.path(place.root, levels)
        out.mailboxes += 1
        for part in (b"cur", b"new"):
            try:
                out.messages += sum(1 for name in os.listdir(os.path.join(path, part)) if not name.startswith(b"."))
            except FileNotFoundError:
                continue
        control = place.control_of(path, levels)
        index = dovecotindex.read(place.index_of(path, levels))
        if index is not None:
            out.findings += _only_in_index(layout.name(levels), control, index)
    return out


def _shape(place: Place, layout: Layout, found: str) -> Iterator[Finding]:
    wanted = "fs" if layout.fs else "maildir++"
    if found == "both":
        text = "there are folders of both layouts, .Name and Name/; pymx shows those of one"
        yield Finding("", "layout_mixed", text, f"move those that are not of the layout {wanted}")
    elif found and found != wanted:
        text = f"the folders are of the layout {found}, the configuration says {wanted}"
        yield Finding("", "layout_other", text, f'set layout = "{found}" under [mail] in pymx.toml')
    if not is_mailbox(place.root):
        below = os.path.join(place.root, b"Maildir")
        if is_mailbox(below):
            text = f"the mail is in {os.fsdecode(below)}, pymx looks for it in {os.fsdecode(place.root)}"
            yield Finding("", "mail_below", text, "with Dovecot stopped, move what is in Maildir/ one level up")
        elif not found:
            yield Finding("", "no_mail", f"{os.fsdecode(place.root)} is no Maildir: it has no cur/", wrong=False)


def _foreign(place: Place, layout: Layout) -> Iterator[Finding]:
    """Mailboxes that this process, which is the server's user unless it is root, may not work in."""
    needed = os.R_OK | os.W_OK | os.X_OK
    closed = []
    for levels in layout.mailboxes(place.root):
        path = layout.path(place.root, levels)
        parts = (path, *(os.path.join(path, part) for part in sorted(_NOT_FOLDERS)))
        if any(os.path.isdir(part) and not os.access(part, needed) for part in parts):
            closed.append(layout.name(levels))
    if closed:
        text = f"pymx's user may not read and write in {some(closed)}"
        yield Finding("", "not_ours", text, f"chown -R to pymx's user and group: {os.fsdecode(place.root)}")


def _only_in_index(mailbox: str, control: bytes, index: dovecotindex.IndexHeader) -> Iterator[Finding]:
    """Keywords beyond the letters are in Dovecot's index alone."""
    known = {name.lower() for name in keywords.read(control) if name}
    only = [name for name in index.keywords if name.lower() not in known]
    if only and len(known) >= LETTERS:
        text = f"Dovecot has keywords that are in no file name, only in its index: {some(only, 10)}"
        remedy = "messages lose them in pymx; which ones have them is shown by adopt --check with --compare or --exec"
        yield Finding(mailbox, "keywords_in_index", text, remedy)

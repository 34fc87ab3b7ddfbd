"""Becoming the configured user, for good: the server after it has bound its ports, pymxctl before it touches data."""

from __future__ import annotations

import os
import pwd


class PrivilegeError(OSError):
    """The process can't become the configured user; the text says what to do."""


def find_user(user: str) -> pwd.struct_passwd:
    """The account of that name. Raises PrivilegeError."""
    try:
        return pwd.getpwnam(user)
    except KeyError:
        raise PrivilegeError(
            f'user = "{user}": there is no such user; create it (useradd --system --home-dir /var/vmail {user}) '
            'or set user = "none"'
        ) from None


def drop_privileges(user: str) -> None:
    """Become `user`, with the groups it belongs to. Nothing to do unless root; "none" = stay. Raises PrivilegeError."""
    if user == "none" or os.geteuid() != 0:
        return
    entry = find_user(user)
    if entry.pw_uid == 0:
        return
    os.setgroups(os.getgrouplist(entry.pw_name, entry.pw_gid))
    os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
    os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    os.environ.update(HOME=entry.pw_dir, USER=entry.pw_name, LOGNAME=entry.pw_name)
    for path in (os.__file__, __file__):
        if not os.access(path, os.R_OK):
            # what is imported later would be missing then: better said now than as a riddle at night
            raise PrivilegeError(
                f'user = "{user}" can\'t read {path}; install Python and pymx where every user may read them '
                "(such as /usr and /opt, not under /root)"
            )

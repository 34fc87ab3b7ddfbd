"""pymxctl domain, user, alias, resolve, migrate: done, shown, told to the daemon, refused with what to do."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pymx.accounts import passwords
from pymx.accounts.registry import Registry
from pymx.admin.control import Control
from pymx.config.load import load

EMAIL = "alice@example.test"


@pytest.fixture
def appliance(pymxctl):
    """With example.test and alice in it."""
    pymxctl.ok("domain", "add", "example.test")
    pymxctl.ok("user", "add", EMAIL, "--password-stdin", stdin="geheim\n")
    return pymxctl


def stored_password(pymxctl, email: str = EMAIL) -> str:
    from sqlalchemy import select

    from pymx.accounts import tables

    registry = Registry(load(pymxctl.config).database)
    try:
        with registry._reading() as connection:
            statement = select(tables.users.c.password).where(tables.users.c.email == email)
            return connection.execute(statement).scalar_one()
    finally:
        registry.close()


def mailbox(pymxctl, local_part: str = "alice") -> Path:
    path = pymxctl.root / "example.test" / local_part
    (path / "cur").mkdir(parents=True)
    (path / "cur" / "message").write_text("mail of the first")
    return path


class Daemon:
    """A control socket that counts what it is told."""

    def __init__(self, path: Path) -> None:
        self.told: list[str] = []
        self._path = path
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._control = Control(path, {"invalidate": self._invalidate})
        asyncio.run_coroutine_threadsafe(self._control.start(), self._loop).result(10)

    async def _invalidate(self, arguments: dict[str, object]) -> object:
        self.told.append("invalidate")
        return None

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._control.close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@pytest.fixture
def daemon(pymxctl) -> Iterator[Daemon]:
    daemon = Daemon(pymxctl.socket)
    yield daemon
    daemon.stop()


def test_the_whole_life_of_an_account(database_url: str, write_config: Callable[[str], Path], run_ctl):
    """On both databases, with nothing there before."""
    config = write_config(database_url)

    def ctl(*words: str, stdin: str = ""):
        done = run_ctl("--config", str(config), *words, "--json", stdin=stdin)
        assert done.status == 0, done
        return done.json

    assert ctl("domain", "add", "Example.test") == {"ok": True, "domain": "example.test"}
    assert ctl("user", "add", EMAIL, "--password-stdin", "--quota", "2G", stdin="geheim\n")["email"] == EMAIL
    assert ctl("alias", "add", "info@example.test", EMAIL, "x@elsewhere.test")["destinations"] == [
        EMAIL,
        "x@elsewhere.test",
    ]
    assert ctl("domain", "list") == [{"domain": "example.test", "users": 1, "aliases": 1}]
    assert ctl("user", "list") == [
        {"email": EMAIL, "quota_octets": 2 * 1024**3, "quota_messages": None, "password_scheme": "BLF-CRYPT"}
    ]
    assert ctl("alias", "list") == [{"source": "info@example.test", "destinations": [EMAIL, "x@elsewhere.test"]}]
    assert ctl("resolve", "info@example.test") == {
        "ok": True,
        "local": True,
        "mailboxes": [EMAIL],
        "external": ["x@elsewhere.test"],
    }
    assert ctl("resolve", "someone@gmail.com")["local"] is False
    assert ctl("resolve", "postmaster")["mailboxes"] == [EMAIL]
    assert ctl("user", "quota", EMAIL, "unlimited")["quota_octets"] == 0
    assert ctl("user", "passwd", EMAIL, "--password-stdin", stdin="neu\n")["ok"]
    assert ctl("user", "remove", EMAIL) == {
        "ok": True,
        "email": EMAIL,
        "mail": None,
        "aliases": ["info@example.test"],
    }
    assert ctl("alias", "remove", "info@example.test")["destinations"] == []
    assert ctl("domain", "remove", "example.test")["ok"]
    assert ctl("migrate") == {"ok": True, "before": "0002", "now": "0002"}


def test_people_get_aligned_tables_without_colours_in_a_pipe(appliance):
    assert appliance.ok("user", "list").out.splitlines() == [
        "Email               Quota    Quota messages  Password scheme",
        "alice@example.test  default  default         BLF-CRYPT",
    ]
    assert appliance.ok("alias", "list").out == "no aliases\n"


def test_the_json_flag_may_stand_anywhere(appliance):
    for words in (("--json", "domain", "list"), ("domain", "--json", "list"), ("domain", "list", "--json")):
        assert appliance.ok(*words).json == [{"domain": "example.test", "users": 1, "aliases": 0}]


def test_a_password_is_stored_as_dovecot_has_it_and_fits(appliance):
    stored = stored_password(appliance)
    assert stored.startswith("{BLF-CRYPT}$2y$04$")
    assert passwords.verify(passwords.parse(stored), "geheim")


def test_a_password_may_hold_spaces_and_any_letter(appliance):
    appliance.ok("user", "passwd", EMAIL, "--password-stdin", stdin=" pässwörd €  \r\n")
    assert passwords.verify(passwords.parse(stored_password(appliance)), " pässwörd €  ")


@pytest.mark.parametrize(("stdin", "says"), [("", "empty"), ("\n", "empty"), ("x" * 73 + "\n", "72")])
def test_an_unusable_password_is_refused(appliance, stdin: str, says: str):
    before = stored_password(appliance)
    done = appliance("user", "passwd", EMAIL, "--password-stdin", stdin=stdin)
    assert done.status == 1
    assert says in done.err
    assert stored_password(appliance) == before


def test_a_hash_made_elsewhere_is_taken_if_it_can_be_used_and_fits(appliance):
    appliance.ok("user", "passwd", EMAIL, "--hash-stdin", stdin="$6$salt$hash\n")
    assert stored_password(appliance) == "$6$salt$hash"
    assert "doveadm" in appliance("user", "passwd", EMAIL, "--hash-stdin", stdin="{PLAIN}geheim\n").err
    done = appliance("user", "passwd", EMAIL, "--hash-stdin", stdin="{SHA512-CRYPT}$6$" + "x" * 103 + "\n")
    assert done.status == 1
    assert "users.password holds 106 characters" in done.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("domain", "add", "example.test"), "is there already"),
        (("domain", "remove", "example.test"), "user remove"),
        (("domain", "remove", "gone.test"), "domain add gone.test"),
        (("user", "remove", "gone@example.test"), "user list"),
        (("user", "quota", "gone@example.test", "1G"), "user list"),
        (("alias", "remove", "gone@example.test"), "alias list"),
        (("alias", "add", "info@example.test", "root"), "'root' is not an address"),
        (("resolve", "gone@example.test"), "there is no gone@example.test"),
    ],
)
def test_what_fails_says_what_to_do(appliance, words: tuple[str, ...], says: str):
    done = appliance(*words)
    assert done.status == 1
    assert done.out == ""
    assert done.err.startswith("pymxctl: ")
    assert says in done.err
    as_json = appliance(*words, "--json")
    assert as_json.status == 1
    assert as_json.json["ok"] is False
    assert says in as_json.json["error"]


def test_an_unreachable_database_is_status_3(write_config: Callable[[str], Path], run_ctl):
    config = write_config("mysql://u:geheim@127.0.0.1:1/db")
    for words in (("user", "list"), ("domain", "add", "x.test"), ("resolve", "a@x.test"), ("migrate",)):
        done = run_ctl("--config", str(config), *words)
        assert done.status == 3, done
        assert "not available" in done.err
        assert "geheim" not in done.err


def test_reading_before_anything_is_there_names_the_command_with_its_config(pymxctl):
    for words in (("domain", "list"), ("resolve", "a@x.test")):
        done = pymxctl(*words)
        assert done.status == 1
        assert f"pymxctl --config {pymxctl.config} migrate" in done.err
    pymxctl.ok("migrate")
    assert "domain add" in pymxctl.ok("domain", "list").out


def test_the_daemon_is_told_of_every_write_and_of_no_read(daemon: Daemon, appliance):
    daemon.told.clear()
    for words, stdin in (
        (("domain", "add", "other.test"), ""),
        (("user", "add", "bob@example.test", "--password-stdin"), "x\n"),
        (("user", "passwd", EMAIL, "--password-stdin"), "x\n"),
        (("user", "quota", EMAIL, "1G"), ""),
        (("alias", "add", "info@example.test", EMAIL), ""),
        (("alias", "remove", "info@example.test"), ""),
        (("user", "remove", "bob@example.test"), ""),
        (("domain", "remove", "other.test"), ""),
    ):
        before = len(daemon.told)
        appliance.ok(*words, stdin=stdin)
        assert len(daemon.told) == before + 1, words
    daemon.told.clear()
    for words in (("domain", "list"), ("user", "list"), ("alias", "list"), ("resolve", EMAIL)):
        appliance.ok(*words)
    assert daemon.told == []


def test_a_daemon_that_could_not_be_told_is_warned_of(appliance):
    """The write is done; the old state may be used for a minute."""
    appliance.socket.parent.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as strange:
        strange.bind(str(appliance.socket))
        strange.listen()

        def hang_up() -> None:
            strange.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        done = appliance.ok("domain", "add", "other.test")
        thread.join(10)
    assert "may remember the old state for 60 s" in done.err


def test_status_without_a_daemon_is_status_3_and_says_how_to_start_it(pymxctl):
    done = pymxctl("status")
    assert done.status == 3
    assert "systemctl start pymx" in done.err


def test_a_removed_users_mail_is_put_aside(appliance):
    path = mailbox(appliance)
    done = appliance.ok("user", "remove", EMAIL)
    (aside,) = (appliance.root / ".removed" / "example.test").iterdir()
    assert aside.name.startswith("alice-")
    assert (aside / "cur" / "message").read_text() == "mail of the first"
    assert str(aside) in done.out
    assert not path.exists()


def test_the_next_user_of_the_name_never_sees_the_mail_of_the_first(appliance):
    """Mail that came after the removal, from a session that knew the user still, is moved away too."""
    mailbox(appliance)
    appliance.ok("user", "remove", EMAIL)
    mailbox(appliance)
    done = appliance.ok("user", "add", EMAIL, "--password-stdin", stdin="x\n")
    assert "was moved to" in done.err
    assert not (appliance.root / "example.test" / "alice").exists()
    assert len(list((appliance.root / ".removed" / "example.test").iterdir())) == 2


def test_an_index_apart_from_the_mail_is_dropped(appliance, tmp_path: Path):
    appliance.config.write_text(
        appliance.config.read_text().replace("[mail]", f'[mail]\nindex_dir = "{tmp_path}/index"')
    )
    index = tmp_path / "index" / "example.test" / "alice"
    index.mkdir(parents=True)
    (index / "pymx-index.sqlite").write_text("what the mail was about")
    appliance.ok("user", "remove", EMAIL)
    assert not index.exists()


def test_a_stop_between_the_row_and_the_move_is_made_up_for(appliance):
    """What `user remove` does first is all that has happened."""
    path = mailbox(appliance)
    registry = Registry(load(appliance.config).database)
    registry.remove_user(EMAIL)
    registry.close()
    assert path.exists()
    appliance.ok("user", "add", EMAIL, "--password-stdin", stdin="x\n")
    assert not path.exists()


def test_a_mailbox_that_was_there_before_is_taken_over(appliance):
    """The Maildir of an earlier installation, whose user was never removed here."""
    path = mailbox(appliance, "bob")
    appliance.ok("user", "add", "bob@example.test", "--password-stdin", stdin="x\n")
    assert (path / "cur" / "message").exists()


def test_an_alias_over_a_user_is_warned_of_from_both_sides(appliance):
    """The alias wins: without its own address in it the mailbox gets nothing."""
    assert "keep a copy" in appliance.ok("alias", "add", EMAIL, "x@elsewhere.test").err
    assert appliance.ok("alias", "add", EMAIL, EMAIL).err == ""
    assert appliance.ok("alias", "add", "@example.test", EMAIL).err == ""
    appliance.ok("alias", "add", "bob@example.test", EMAIL)
    assert "takes the mail to" in appliance.ok("user", "add", "bob@example.test", "--password-stdin", stdin="x\n").err


@pytest.mark.parametrize("email", ["a/b@example.test", "alice", "../x@example.test"])
def test_a_name_that_can_have_no_mailbox_is_refused(appliance, email: str):
    done = appliance("user", "add", email, "--password-stdin", stdin="x\n")
    assert done.status == 1
    assert [u["email"] for u in appliance.ok("user", "list", "--json").json] == [EMAIL]


def test_removing_says_which_aliases_still_lead_there(appliance):
    appliance.ok("alias", "add", "info@example.test", EMAIL)
    assert "info@example.test" in appliance.ok("user", "remove", EMAIL).err


@pytest.mark.parametrize(
    ("size", "octets"),
    [("500M", 500 * 1024**2), ("2g", 2 * 1024**3), ("1GiB", 1024**3), ("1000", 1000), ("10kb", 10240)],
)
def test_sizes(appliance, size: str, octets: int):
    assert appliance.ok("user", "quota", EMAIL, size, "--json").json["quota_octets"] == octets


def test_limits_are_set_one_by_one_and_shown_with_what_is_used(appliance):
    assert appliance.ok("user", "quota", EMAIL, "--messages", "5000", "--json").json["quota_messages"] == 5000
    assert appliance.ok("user", "quota", EMAIL, "1G", "--json").json["quota_messages"] == 5000
    shown = {"ok": True, "email": EMAIL, "octets": 0, "quota_octets": 1024**3, "messages": 0, "quota_messages": 5000}
    assert appliance.ok("user", "quota", EMAIL, "--json").json == shown
    appliance.ok("user", "quota", EMAIL, "--messages", "unlimited")
    assert appliance.ok("user", "quota", EMAIL, "--recount", "--json").json["quota_messages"] == 0
    assert appliance("user", "quota", EMAIL, "--messages", "0").status == 2
    assert appliance("user", "quota", "nobody@example.test").status == 1


@pytest.mark.parametrize("size", ["", "0", "-1", "much", "1P", "1.5G"])
def test_what_is_no_size_is_wrong_usage(appliance, size: str):
    assert appliance("user", "quota", EMAIL, "--", size).status == 2


def test_resolve_warns_of_a_destination_that_does_not_exist(appliance):
    appliance.ok("alias", "add", "info@example.test", EMAIL, "gone@example.test")
    done = appliance.ok("resolve", "info@example.test")
    assert "there is no gone@example.test" in done.err


def test_json_errors_are_json(pymxctl):
    assert json.loads(pymxctl("user", "list", "--json").out)["ok"] is False

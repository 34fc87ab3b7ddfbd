"""Rewritten senders: their way there and back, what tampering does, and Mail::SRS and postsrsd as the other side."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymx.mail.address import Address, AddressError, parse_address, parse_path
from pymx.mta.srs import Secrets, Srs, SrsError, Stored, is_srs

NOW = 1_795_000_000.0
DAY_S = 86400
SECRET = "a secret of the other side"


def srs_with(path: Path, *secrets: str) -> Srs:
    path.write_text("".join(f"{secret}\n" for secret in secrets))
    return Srs(Secrets(path))


@pytest.fixture
def srs(tmp_path: Path) -> Srs:
    return srs_with(tmp_path / "srs.secret", SECRET)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Srs:
    return srs_with(tmp_path_factory.mktemp("srs") / "srs.secret", SECRET)


LABEL = st.from_regex(r"[a-z0-9](?:[a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
DOMAIN = st.lists(LABEL, min_size=1, max_size=4).map(".".join)
ATOM = st.from_regex(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]{1,40}", fullmatch=True)
LOCAL_PART = st.one_of(
    ATOM,
    st.lists(ATOM, min_size=2, max_size=3).map(".".join),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=50),
    st.text(min_size=1, max_size=30),
    st.tuples(st.sampled_from(["SRS0=", "srs0+", "SRS1-", "SRS0", "SRS1="]), ATOM).map("".join),
    st.tuples(ATOM, DOMAIN, ATOM).map(lambda t: f"SRS0={t[0][:4]}=AB={t[1]}={t[2]}"),
    st.tuples(ATOM, DOMAIN, ATOM).map(lambda t: f"SRS1={t[0][:4]}={t[1]}==abcd=AB={t[2]}"),
)


def valid(local_part: str, domain: str) -> Address | None:
    try:
        return parse_address(str(Address(local_part, domain)))
    except AddressError:
        return None


SENDER = st.builds(valid, LOCAL_PART, DOMAIN).filter(lambda a: a is not None)


def there(srs: Srs, sender: Address, domain: str, now: float = NOW) -> tuple[Address, str]:
    """The rewritten sender, and the token it was stored under, or ""."""
    made = srs.forward(sender, domain, now=now)
    return (made, "") if made is not None else srs.shortened(sender, domain, now=now)


@given(sender=SENDER, domain=DOMAIN)
def test_every_sender_comes_back_within_the_limits(sender: Address, domain: str, shared: Srs) -> None:
    """RFC 5321 s. 4.5.3.1: 64 octets of local part, 256 of path. The way back ends where the message came from; what
    a first forwarder made goes back to that one."""
    made, token = there(shared, sender, domain)
    parsed, rest = parse_path(f"<{made}>")
    assert (parsed, rest) == (made, "")
    assert made.is_ascii
    assert len(str(made).rpartition("@")[0].encode()) <= 64
    assert len(f"<{made}>".encode()) <= 256
    back = shared.reverse(made, now=NOW)
    if token:
        assert back == Stored(token)
    elif made.local_part.startswith("SRS1"):
        assert isinstance(back, Address)
        assert back.local_part.startswith("SRS0")
        if sender.local_part[:4].upper() == "SRS0":
            assert (back.local_part[4:], back.domain) == (sender.local_part[4:], sender.domain)
    else:
        assert back == sender


@given(sender=SENDER, place=st.integers(5, 80), letter=st.sampled_from("ABCabc23=.x"))
def test_what_is_tampered_with_is_refused(sender: Address, place: int, letter: str, shared: Srs) -> None:
    """Any letter after the tag "SRS0=" changed: nobody but we can make such an address. Case alone is no change."""
    made, _ = there(shared, sender, "ours.test")
    local_part = made.local_part
    place = 5 + (place - 5) % (len(local_part) - 5)
    forged = local_part[:place] + letter + local_part[place + 1 :]
    if forged.lower() == local_part.lower():
        assert shared.reverse(Address(forged, made.domain), now=NOW)
        return
    with pytest.raises(SrsError):
        shared.reverse(Address(forged, made.domain), now=NOW)


@given(text=st.text(max_size=70))
def test_nothing_but_our_error_comes_of_any_text(text: str, shared: Srs) -> None:
    for local_part in (text, "SRS0=" + text, "SRS1=" + text, "SRS0=abcd=AB=" + text):
        with pytest.raises(SrsError):
            shared.reverse(Address(local_part, "ours.test"), now=NOW)


def test_the_form_is_that_of_everybody(srs: Srs) -> None:
    made = srs.forward(Address("Alice", "example.com"), "ours.test", now=NOW)
    assert re.fullmatch(r"SRS0=[A-Za-z0-9+/]{4}=[A-Z2-7]{2}=example\.com=Alice@ours\.test", str(made))
    again = srs.forward(Address("SRS0=abcd=XY=example.com=alice", "first.test"), "ours.test", now=NOW)
    assert re.fullmatch(r"SRS1=[A-Za-z0-9+/]{4}=first\.test==abcd=XY=example\.com=alice@ours\.test", str(again))
    third = srs.forward(Address("SRS1=zzzz=first.test==abcd=XY=example.com=alice", "second.test"), "ours.test", now=NOW)
    # back to the first forwarder, not through all of them; with another tag, see below
    assert str(third)[9:] == str(again)[9:]
    assert srs.reverse(third, now=NOW) == srs.reverse(again, now=NOW)
    assert is_srs(Address("srs0+x", "a"))
    assert not is_srs(Address("srs0", "a"))


@pytest.mark.parametrize(("age_days", "leads_back"), [(0, True), (21, True), (22, False), (1023, False), (-1, False)])
def test_an_address_lives_for_21_days(age_days: int, leads_back: bool, srs: Srs) -> None:
    made = srs.forward(Address("alice", "example.com"), "ours.test", now=NOW)
    assert made
    later = NOW + age_days * DAY_S
    if leads_back:
        assert srs.reverse(made, now=later) == Address("alice", "example.com")
    else:
        with pytest.raises(SrsError, match="expired"):
            srs.reverse(made, now=later)


def test_the_tag_holds_at_least_20_bits_without_regard_to_case(srs: Srs) -> None:
    """Every one of the tags that differ from the right one in a letter is refused, and there are 36^4 = 2^20.7."""
    made = srs.forward(Address("alice", "example.com"), "ours.test", now=NOW)
    assert made
    tag, rest = made.local_part[5:9], made.local_part[9:]
    accepted = {
        guess.lower()
        for place in range(4)
        for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
        for guess in [tag[:place] + letter + tag[place + 1 :]]
        if _leads_back(srs, Address(f"SRS0={guess}{rest}", "ours.test"))
    }
    assert accepted == {tag.lower()}


def _leads_back(srs: Srs, address: Address) -> bool:
    try:
        srs.reverse(address, now=NOW)
    except SrsError:
        return False
    return True


def day_of(srs: Srs) -> str:
    made = srs.forward(Address("alice", "example.com"), "ours.test", now=NOW)
    assert made
    return made.local_part[10:12]


@pytest.mark.parametrize("separator", ["=", "+", "-"])
@pytest.mark.parametrize("user", ["bob", "=bob", "+bob", "bob=x=y"])
def test_no_sender_buys_the_tag_of_another_address(separator: str, user: str, srs: Srs) -> None:
    """An SRS1 has the host and the user that the sender says, of whom SPF knows only the domain behind it. With the day
    in front they are all that an SRS0 has: its tag would make us pass on to anybody what looks like a bounce."""
    day = day_of(srs)
    for host, rest in (
        (f"{day}example.com", user),
        (f"{day}example.comb", user[1:] or "x"),
        (f"{day}example.com{user}", "x"),
    ):
        bought = srs.forward(Address(f"SRS1{separator}x={host}={rest}", "evil.test"), "ours.test", now=NOW)
        assert bought
        assert bought.local_part.startswith("SRS1=")
        tag = bought.local_part[5:9]
        text = host[len(day) :] + rest
        for end in range(1, len(text)):
            with pytest.raises(SrsError):
                srs.reverse(Address(f"SRS0={tag}={day}={text[:end]}={text[end:]}", "ours.test"), now=NOW)


def test_a_stored_sender_is_nobody_elses_to_name(srs: Srs) -> None:
    """Nor does it buy the tag of a token."""
    day = day_of(srs)
    bought = srs.forward(Address(f"SRS1=x={day}~=TOKEN", "evil.test"), "ours.test", now=NOW)
    assert bought
    with pytest.raises(SrsError):
        srs.reverse(Address(f"SRS0={bought.local_part[5:9]}={day}=~=TOKEN", "ours.test"), now=NOW)
    with pytest.raises(SrsError):
        srs.reverse(Address(f"SRS0={bought.local_part[5:9]}={day}=~==TOKEN", "ours.test"), now=NOW)


def test_the_border_of_domain_and_local_part_is_not_in_the_tag(srs: Srs) -> None:
    """Kept, to be compatible: see docs/adr/0007. Only a domain that begins or ends inside of the other can have it."""
    one = srs.forward(Address("mbob", "example.co"), "ours.test", now=NOW)
    other = srs.forward(Address("bob", "example.com"), "ours.test", now=NOW)
    assert one
    assert other
    assert one.local_part[:9] == other.local_part[:9]


def test_a_domain_of_any_length_gets_an_address_or_an_error(srs: Srs) -> None:
    label = "a" * 62
    for domain in (f"{label}.{label}.{label}.test", f"{label}.{label}.{label}.{'b' * 25}.test"):
        made, token = there(srs, Address("x" * 64, "example.com"), domain)
        assert token
        assert len(f"<{made}>") <= 256
    with pytest.raises(SrsError, match="too long"):
        there(srs, Address("alice", "example.com"), f"{label}.{label}.{label}.{'b' * 60}.test")


# --- the key file ---------------------------------------------------------------------------------------------------


def test_the_secret_is_made_once_for_nobody_else_to_read_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "srs.secret"
    found: set[tuple[bytes, ...]] = set()
    threads = [threading.Thread(target=lambda: found.add(Secrets(path).all())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(path.read_bytes()) > 32
    assert [p.name for p in tmp_path.iterdir()] == ["srs.secret"]
    made = Srs(Secrets(path)).forward(Address("alice", "example.com"), "ours.test", now=NOW)
    assert made
    assert Srs(Secrets(path)).reverse(made, now=NOW) == Address("alice", "example.com")


def test_a_new_secret_in_front_keeps_the_old_ones_way_back(tmp_path: Path) -> None:
    path = tmp_path / "srs.secret"
    srs = srs_with(path, "# a comment", "", "old")
    old = srs.forward(Address("alice", "example.com"), "ours.test", now=NOW)
    path.write_text("new\nold\n")
    os.utime(path, ns=(1, 1))
    new = srs.forward(Address("alice", "example.com"), "ours.test", now=NOW)
    assert old
    assert new
    assert old != new
    assert srs.reverse(old, now=NOW) == srs.reverse(new, now=NOW) == Address("alice", "example.com")
    path.write_text("new\n")
    with pytest.raises(SrsError, match="tag"):
        srs.reverse(old, now=NOW)


def test_a_file_without_secrets_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no secret"):
        srs_with(tmp_path / "srs.secret", "# nothing").forward(Address("a", "b.test"), "ours.test", now=NOW)


# --- other implementations ------------------------------------------------------------------------------------------

_PERL = """
use Mail::SRS;
my $srs = new Mail::SRS(Secret => $ARGV[0]);
while (<STDIN>) {
    chomp;
    my ($verb, $address, $alias) = split / /;
    my $answer = eval { $verb eq 'F' ? $srs->forward($address, $alias) : $srs->reverse($address) };
    print defined $answer ? $answer : 'refused', "\\n";
}
"""


def mail_srs(*questions: str, secret: str = SECRET) -> list[str]:
    """What Mail::SRS answers to `F ADDRESS ALIAS` and `R ADDRESS`."""
    done = subprocess.run(
        ["perl", "-e", _PERL, secret], input="\n".join(questions), capture_output=True, text=True, timeout=60
    )
    if "Can't locate Mail/SRS.pm" in done.stderr:
        pytest.skip("libmail-srs-perl is not installed")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


SENDERS = [
    "alice@example.com",
    "Bob.Smith+tag@Mail.example.com",
    "a=b=c@example.com",
    "x@y.example",
    "SRS0=abcd=XY=example.com=alice@first.test",
    "srs0+abcd=XY=example.com=alice@first.test",
]
THIRD = "SRS1=abcd=first.test==wxyz=XY=example.com=alice@second.test"


def test_mail_srs_takes_our_addresses_back_and_we_take_its_own(srs: Srs) -> None:
    """Debian's libmail-srs-perl with the same secret: changing from one to the other loses no bounce."""
    import time

    now = time.time()
    ours = [str(srs.forward(parse_address(sender), "ours.test", now=now)) for sender in SENDERS]
    theirs = mail_srs(*(f"F {sender} ours.test" for sender in SENDERS), *(f"R {address}" for address in ours))
    made, reversed_ = theirs[: len(SENDERS)], theirs[len(SENDERS) :]
    assert [a.lower() for a in made] == [a.lower() for a in ours]
    back = [srs.reverse(parse_address(address), now=now) for address in made]
    assert [str(a).lower() for a in back] == [a.lower() for a in reversed_]
    assert [str(srs.reverse(parse_address(a), now=now)) for a in ours] == [str(a) for a in back]
    assert mail_srs(f"R {ours[0]}", secret="another") == ["refused"]


def test_what_mail_srs_made_of_a_third_forwarder_still_leads_back(srs: Srs) -> None:
    """Its tag is of the kind that we do not make any more, and had made before."""
    made, back = mail_srs(f"F {THIRD} ours.test", "R SRS1=aaaa=first.test==wxyz=XY=example.com=alice@ours.test")
    assert back == "refused"
    assert str(srs.reverse(parse_address(made), now=NOW)) == "SRS0=wxyz=XY=example.com=alice@first.test"
    ours = srs.forward(parse_address(THIRD), "ours.test", now=NOW)
    assert ours
    assert srs.reverse(ours, now=NOW) == srs.reverse(parse_address(made), now=NOW)


def test_mail_srs_rewrites_ours_and_the_bounce_comes_back_through_both(srs: Srs) -> None:
    import time

    now = time.time()
    first = srs.forward(Address("alice", "example.com"), "ours.test", now=now)
    (second,) = mail_srs(f"F {first} second.test", secret="of the second")
    assert second.startswith("SRS1=")
    (back,) = mail_srs(f"R {second}", secret="of the second")
    assert srs.reverse(parse_address(back), now=now) == Address("alice", "example.com")


def test_postsrsd_takes_our_addresses_back_and_we_take_its_own(srs: Srs, tmp_path: Path) -> None:
    """Debian's postsrsd, asked over its socketmap-like TCP tables."""
    program = shutil.which("postsrsd", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if program is None:
        pytest.skip("postsrsd is not installed")
    import time

    from support.ports import free_port
    from support.wait import wait_for

    forward_port, reverse_port = free_port(), free_port()
    process = subprocess.Popen(
        [
            program, "-s", str(tmp_path / "srs.secret"), "-d", "ours.test", "-l", "127.0.0.1",
            "-f", str(forward_port), "-r", str(reverse_port),
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:

        def ask(port: int, address: str) -> str:
            import socket

            with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
                connection.sendall(f"get {address}\n".encode())
                return connection.makefile().readline().strip()

        def answers() -> bool:
            assert process.poll() is None, process.stderr and process.stderr.read()
            try:
                return bool(ask(forward_port, "x@example.com"))
            except OSError:
                return False

        wait_for(answers, timeout_s=20, what="postsrsd")
        now = time.time()
        made = ask(forward_port, "alice@example.com").removeprefix("200 ")
        assert made == str(srs.forward(Address("alice", "example.com"), "ours.test", now=now))
        assert ask(reverse_port, made) == "200 alice@example.com"
        assert srs.reverse(parse_address(made), now=now) == Address("alice", "example.com")
    finally:
        process.terminate()
        process.wait(20)
        if process.stderr:
            process.stderr.close()

"""Stored passwords, against the hashes that the real `doveadm pw` makes, and the other way round."""

from __future__ import annotations

import subprocess

import bcrypt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.programs import require

from pymx.accounts import passwords
from pymx.accounts.passwords import PasswordUnusable, UnsupportedScheme


def doveadm(*arguments: str) -> str:
    program = require("doveadm", "dovecot-core")
    done = subprocess.run([program, "pw", *arguments], check=True, capture_output=True, text=True, timeout=30)
    return done.stdout.strip()


def check(stored: str, password: str) -> bool:
    return passwords.verify(passwords.parse(stored), password)


@pytest.mark.parametrize("scheme", ["BLF-CRYPT", "SHA512-CRYPT", "SHA256-CRYPT", "ARGON2ID", "ARGON2I", "CRYPT"])
def test_what_doveadm_made_verifies_with_and_without_its_scheme(scheme: str):
    stored = doveadm("-s", scheme, "-p", "pässwörd €")
    assert stored.startswith(f"{{{scheme}}}$")
    bare = stored.removeprefix(f"{{{scheme}}}")
    for form in (stored, bare, "{CRYPT}" + bare, stored.replace(scheme, scheme.lower(), 1)):
        assert check(form, "pässwörd €")
        assert not check(form, "passwort")


@pytest.mark.parametrize("scheme", ["PLAIN", "MD5-CRYPT", "SSHA512", "SSHA", "DES-CRYPT", "SCRAM-SHA-256", "PBKDF2"])
def test_other_schemes_are_named_and_refused(scheme: str):
    stored = doveadm("-s", scheme, "-p", "geheim")
    with pytest.raises(UnsupportedScheme) as raised:
        passwords.parse(stored)
    assert scheme in str(raised.value)
    assert stored.partition("}")[2] not in str(raised.value)


@pytest.mark.parametrize(
    "stored",
    ["", "geheim", "{}", "{BLF-CRYPT}", "{BLF-CRYPT}$6$salt$hash", "{SHA512-CRYPT}$2y$05$x", "$1$salt$hash", "$7$x"],
)
def test_what_is_no_hash_of_its_scheme_is_refused(stored: str):
    with pytest.raises(UnsupportedScheme):
        passwords.parse(stored)


@pytest.mark.parametrize("variant", ["2a", "2b", "2y"])
def test_all_names_of_bcrypt_verify(variant: str):
    stored = doveadm("-s", "BLF-CRYPT", "-p", "geheim").replace("$2y$", f"${variant}$")
    assert check(stored, "geheim")


def test_a_new_password_is_written_as_dovecot_writes_it_and_fits_the_column():
    stored = passwords.make("geheim", 4)
    assert stored.startswith("{BLF-CRYPT}$2y$04$")
    assert len(stored) <= 106
    assert check(stored, "geheim")


def test_doveadm_verifies_a_new_password():
    stored = passwords.make("pässwörd €", 4)
    assert "verified" in doveadm("-t", stored, "-p", "pässwörd €")


@pytest.mark.parametrize(("password", "why"), [("", "empty"), ("x" * 73, "72"), ("ä" * 37, "74"), ("a\0b", "NUL")])
def test_a_new_password_that_bcrypt_would_cut_is_refused(password: str, why: str):
    with pytest.raises(PasswordUnusable, match=why):
        passwords.make(password, 4)


def test_a_long_password_verifies_by_its_first_72_octets_as_in_dovecot():
    long = "x" * 80
    assert check(doveadm("-s", "BLF-CRYPT", "-p", long), long)


def test_72_octets_are_allowed():
    assert check(passwords.make("ä" * 36, 4), "ä" * 36)


@pytest.mark.parametrize(
    "damaged",
    ["$2y$05$short", "$2y$99$" + "a" * 53, "$6$", "$5$rounds=x$a$b", "$argon2id$v=19$m=65536,t=3,p=1$x", "$argon2i$"],
)
def test_a_damaged_hash_fits_nothing(damaged: str):
    assert not check(damaged, "geheim")


def test_an_empty_or_endless_password_fits_nothing():
    stored = passwords.make("geheim", 4)
    assert not check(stored, "")
    assert not check(stored, "x" * 100_000)


@given(st.text())
@settings(max_examples=300)
def test_parse_never_raises_anything_else(stored: str):
    try:
        passwords.parse(stored)
    except UnsupportedScheme:
        pass


@pytest.mark.parametrize("cost", [4, 10, 12])
def test_the_dummy_is_a_hash_that_is_really_computed(cost: int):
    dummy = passwords.dummy(cost)
    assert passwords.parse(dummy.hash) == dummy
    assert bcrypt.checkpw(b"geheim", dummy.hash.encode()) is False  # and no ValueError, which would be quick
    assert not passwords.verify(dummy, "geheim")

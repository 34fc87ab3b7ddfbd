"""Key files: made privately, found by selector, followed when they change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from pymx.mailauth.dkim import keys
from pymx.mailauth.dkim.keys import KeyExists, KeyRing, KeyUnusable

DOMAIN = "example.test"


def ed(directory: Path, selector: str) -> None:
    keys.generate(directory, DOMAIN, selector, algorithm="ed25519")


def selectors(ring: KeyRing) -> list[str]:
    return [key.selector for key in ring.keys(DOMAIN)]


def attentive(directory: Path, complaints: list[str] | None = None) -> KeyRing:
    """A ring that looks at the disk every time."""
    heard = complaints if complaints is not None else []
    return KeyRing(directory, look_again_s=0, complain=lambda _, reason: heard.append(reason))


def test_a_key_is_private_and_its_record_fits(tmp_path: Path) -> None:
    key = keys.generate(tmp_path, DOMAIN, "s1")
    path = tmp_path / DOMAIN / "s1.pem"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert key.record_name == "s1._domainkey.example.test"
    assert key.record.startswith("v=DKIM1; k=rsa; p=MIIB")
    assert sorted(p.name for p in path.parent.iterdir()) == ["s1.pem"]


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    ed(tmp_path, "s1")
    before = (tmp_path / DOMAIN / "s1.pem").read_bytes()
    with pytest.raises(KeyExists, match="another selector"):
        ed(tmp_path, "s1")
    assert (tmp_path / DOMAIN / "s1.pem").read_bytes() == before


def test_a_second_key_waits_until_it_is_chosen(tmp_path: Path) -> None:
    """A record has to be in DNS before its key signs (RFC 6376 s. 3.1)."""
    ring = attentive(tmp_path)
    ed(tmp_path, "m")
    assert selectors(ring) == ["m"]
    ed(tmp_path, "a")
    assert selectors(ring) == ["m"]
    keys.activate(tmp_path, DOMAIN, ["a"])
    assert selectors(ring) == ["a"]
    with pytest.raises(KeyUnusable, match="no key of selector x"):
        keys.activate(tmp_path, DOMAIN, ["x"])


def test_a_key_file_that_changed_is_read_again(tmp_path: Path) -> None:
    ring = attentive(tmp_path)
    ed(tmp_path, "s")
    first = ring.keys(DOMAIN)[0].public
    (tmp_path / DOMAIN / "s.pem").unlink()
    assert ring.keys(DOMAIN) == []
    ed(tmp_path, "s")
    assert ring.keys(DOMAIN)[0].public != first


def test_a_loaded_key_stays_in_use_when_its_file_is_damaged(tmp_path: Path) -> None:
    complaints: list[str] = []
    ring = attentive(tmp_path, complaints)
    ed(tmp_path, "s")
    public = ring.keys(DOMAIN)[0].public
    (tmp_path / DOMAIN / "s.pem").write_bytes(b"rubbish")
    assert ring.keys(DOMAIN)[0].public == public
    assert "s.pem: not an unencrypted PEM private key" in complaints[0]


def rsa_pem(bits: int) -> bytes:
    return rsa.generate_private_key(65537, bits).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


def ec_pem(password: bytes | None) -> bytes:
    protection = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection
    )


@pytest.mark.parametrize("pem", [b"", b"rubbish", ec_pem(None), ec_pem(b"secret"), b"\xff" * 5000])
def test_a_file_that_is_no_key_is_named_in_the_error(pem: bytes, tmp_path: Path) -> None:
    (tmp_path / DOMAIN).mkdir()
    (tmp_path / DOMAIN / "s.pem").write_bytes(pem)
    with pytest.raises(KeyUnusable, match=r"s\.pem: "):
        KeyRing(tmp_path).keys(DOMAIN)


def test_opendkim_keys_are_read(tmp_path: Path) -> None:
    """opendkim-genkey and rspamadm write the traditional form."""
    (tmp_path / DOMAIN).mkdir()
    (tmp_path / DOMAIN / "mail.pem").write_bytes(rsa_pem(1024))
    assert KeyRing(tmp_path).keys(DOMAIN)[0].algorithm == "rsa-sha256"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_key_is_named_in_the_error(tmp_path: Path) -> None:
    ed(tmp_path, "s")
    (tmp_path / DOMAIN / "s.pem").chmod(0)
    with pytest.raises(KeyUnusable, match=r"s\.pem: Permission denied"):
        KeyRing(tmp_path).keys(DOMAIN)


@pytest.mark.parametrize("selector", ["", "..", "a/b", "a b", "-a", "a..b", "x" * 64, "A"])
def test_what_is_no_selector_is_refused(selector: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a selector"):
        keys.generate(tmp_path, DOMAIN, selector, algorithm="ed25519")


@pytest.mark.parametrize("domain", ["", "..", "../etc", "a/b", "EXAMPLE.test", "a b"])
def test_what_is_no_domain_has_no_keys(domain: str, tmp_path: Path) -> None:
    assert KeyRing(tmp_path).keys(domain) == []
    with pytest.raises(ValueError, match="not a domain name"):
        keys.generate(tmp_path, domain, "s", algorithm="ed25519")

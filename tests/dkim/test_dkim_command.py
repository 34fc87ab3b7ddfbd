"""pymxctl dkim: what a person copies into DNS, and what a script reads."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pymx.admin import ctl


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "pymx.toml"
    path.write_text(f'hostname = "mx.example.test"\ndata_dir = "{tmp_path}"\nuser = "none"\n')
    return path


def pymxctl(config: Path, *words: str) -> int:
    return ctl.main(["--config", str(config), *words])


def test_generate_prints_the_record_in_three_forms(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pymxctl(config, "dkim", "generate", "example.test", "--selector", "s1") == 0
    out = capsys.readouterr().out
    whole = re.search(r"^  (v=DKIM1; k=rsa; p=\S+)$", out, re.MULTILINE)
    assert whole
    strings = re.findall(r'^  "(.*)"$', out, re.MULTILINE)
    assert "".join(strings) == whole[1]
    assert len(strings[0]) == 255
    assert f's1._domainkey.example.test. IN TXT ( "{strings[0]}" "{strings[1]}" )' in out


def test_show_in_json(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pymxctl(config, "dkim", "generate", "Bücher.test", "--algorithm", "ed25519", "--selector", "e") == 0
    capsys.readouterr()
    assert pymxctl(config, "--json", "dkim", "show", "bücher.test") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["domain"] == "xn--bcher-kva.test"
    assert shown["records"][0]["active"] is True
    assert shown["records"][0]["txt"].startswith("v=DKIM1; k=ed25519; p=")


def test_a_second_key_says_how_to_use_it(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for selector in ("one", "two"):
        assert pymxctl(config, "dkim", "generate", "a.test", "--algorithm", "ed25519", "--selector", selector) == 0
    assert "pymxctl dkim use a.test two" in capsys.readouterr().out
    assert pymxctl(config, "dkim", "use", "a.test", "two") == 0
    capsys.readouterr()
    assert pymxctl(config, "dkim", "show", "a.test") == 0
    out = capsys.readouterr().out
    assert "one (ed25519-sha256, not in use, made " in out
    assert "two (ed25519-sha256, in use since " in out


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["show", "a.test"], 1, "make one with: pymxctl dkim generate a.test"),
        (["generate", "a.test", "--bits", "512"], 2, "2048 to 4096 bits"),
        (["generate", "a..test"], 2, "malformed domain label"),
        (["use", "a.test", "x"], 1, "no key of selector x"),
    ],
)
def test_errors_say_what_to_do(
    words: list[str], status: int, text: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pymxctl(config, "dkim", *words) == status
    assert text in capsys.readouterr().err


def test_rotate_prints_the_record_and_what_will_happen(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All forms of the new record, none of the private key; the old key signs on."""
    assert pymxctl(config, "dkim", "generate", "a.test", "--selector", "old") == 0
    capsys.readouterr()
    assert pymxctl(config, "dkim", "rotate", "a.test") == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"^  v=DKIM1; k=rsa; p=\S+$", out, re.MULTILINE)) == 1
    assert re.search(r"^  20\d{4}rsa\._domainkey\.a\.test\. IN TXT \( ", out, re.MULTILINE)
    assert "waits for its record in DNS" in out
    assert "it signs with the new key" in out
    assert "7 days later the old key is deleted" in out
    assert "PRIVATE" not in out
    assert pymxctl(config, "dkim", "rotate", "a.test") == 0  # the one that waits, again
    assert capsys.readouterr().out == out
    assert pymxctl(config, "--json", "dkim", "show", "a.test") == 0
    shown = json.loads(capsys.readouterr().out)
    assert {(r["selector"] == "old", r["active"], r["waiting"]) for r in shown["records"]} == {
        (True, True, False),
        (False, False, True),
    }


def test_rotate_replaces_every_algorithm_in_use(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for algorithm in ("rsa", "ed25519"):
        assert pymxctl(config, "dkim", "generate", "a.test", "--algorithm", algorithm) == 0
    capsys.readouterr()
    assert pymxctl(config, "--json", "dkim", "rotate", "a.test") == 0
    made = json.loads(capsys.readouterr().out)["records"]
    assert sorted(r["algorithm"] for r in made) == ["ed25519-sha256", "rsa-sha256"]
    assert not any(r["active"] for r in made)


def test_show_warns_of_a_key_that_others_can_read(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pymxctl(config, "dkim", "generate", "a.test", "--selector", "s") == 0
    key = config.parent / "dkim" / "a.test" / "s.pem"
    assert key.stat().st_mode & 0o777 == 0o600
    key.chmod(0o640)
    assert pymxctl(config, "dkim", "show", "a.test") == 0
    assert "chmod 600" in capsys.readouterr().err

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
    assert "one (ed25519-sha256, not in use)" in out
    assert "two (ed25519-sha256, in use)" in out


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

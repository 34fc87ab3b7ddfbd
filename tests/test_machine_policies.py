"""What config has for the machine around it (SELinux, AppArmor, firewalld, nftables) satisfies its own tools."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from support.programs import find, require

from pymx.config.model import Config

CONFIG = Path(__file__).parent.parent / "config"
SELINUX_MAKEFILE = Path("/usr/share/selinux/devel/Makefile")


def _ports_for_clients() -> set[int]:
    config = Config()
    listened = [
        *config.smtp.listen,
        *config.submission.listen_tls,
        *config.submission.listen_starttls,
        *config.imap.listen_tls,
    ]
    return {int(spec.rpartition(":")[2]) for spec in listened}


def _firewalld_ports(name: str) -> set[int]:
    service = ET.parse(CONFIG / "firewalld" / f"{name}.xml").getroot()
    assert service.tag == "service"
    assert service.findtext("short")
    assert {port.get("protocol") for port in service.iter("port")} == {"tcp"}
    return {int(port.get("port", "0")) for port in service.iter("port")}


def test_firewalls_open_the_ports_that_are_listened_on() -> None:
    """The mail ports of the default settings, and 80 and 443 for the public pages."""
    assert _firewalld_ports("pymx") == _ports_for_clients()
    assert _firewalld_ports("pymx-web") == {80, 443}
    rules = (CONFIG / "nftables" / "pymx.nft").read_text()
    accepted = re.findall(r"^\s*tcp dport \{ ([\d, ]+) \} accept$", rules, re.MULTILINE)
    assert {int(port) for ports in accepted for port in ports.split(",")} == _ports_for_clients() | {80, 443}
    assert not re.search(r"dport \{[^}]*\b25\b[^}]*\} ip6? saddr @banned", rules)


def test_nftables_rules_are_accepted_by_nft() -> None:
    """`nft -c`: read and checked, not loaded. Needs a kernel that lets us ask."""
    nft = require("nft", "nftables")
    if subprocess.run([nft, "list", "tables"], capture_output=True, timeout=30).returncode:
        pytest.skip("this kernel has no nf_tables, or we may not ask")
    done = subprocess.run([nft, "-c", "-f", str(CONFIG / "nftables" / "pymx.nft")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_apparmor_profile_is_accepted_by_its_parser() -> None:
    parser = require("apparmor_parser", "apparmor")
    profile = CONFIG / "apparmor.d" / "pymx"
    done = subprocess.run([parser, "-Q", "-K", str(profile)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_selinux_module_compiles_against_the_reference_policy(tmp_path: Path) -> None:
    require("checkmodule", "checkpolicy")
    if not SELINUX_MAKEFILE.exists() or find("make") is None:
        pytest.skip("MISSING selinux-policy-dev")
    for path in (CONFIG / "selinux").iterdir():
        shutil.copy(path, tmp_path)
    done = subprocess.run(
        ["make", "-f", str(SELINUX_MAKEFILE), "pymx.pp"],
        cwd=tmp_path, capture_output=True, text=True, timeout=110, env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / "pymx.pp").stat().st_size > 1000

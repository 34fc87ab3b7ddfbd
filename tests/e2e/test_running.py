"""How the server starts, who it becomes, what it says when it can't, and how its queue is administered."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import smtplib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.appliance import Appliance
from support.ports import free_port
from support.programs import python_for
from support.sinks import ScriptedRemote
from support.wait import wait_for


@pytest.fixture
def appliance() -> Iterator[Appliance]:
    server = Appliance()
    yield server
    server.remove()


def test_mail_flows_on_the_standard_event_loop_too(appliance: Appliance) -> None:
    """[event_loop] asyncio is the fallback where uvloop is missing: TLS in, push, TLS out."""
    appliance.top = 'event_loop = "asyncio"'
    appliance.write_config()
    appliance.populate()
    appliance.start()
    wait_for(lambda: "event_loop=asyncio" in appliance.log(), what="the start is logged")
    with appliance.imap("bob") as imap:
        imap.select("INBOX")
        imap.send(b"x IDLE\r\n")
        assert imap.readline().startswith(b"+")
        appliance.submit("alice", appliance.address("bob"), "by asyncio")
        while not imap.readline().endswith(b"EXISTS\r\n"):
            pass
        imap.send(b"DONE\r\n")
        while not imap.readline().startswith(b"x OK"):
            pass
    assert appliance.subjects("bob") == ["by asyncio"]
    assert appliance.stop() == 0


def test_taken_port_is_named_with_its_setting(appliance: Appliance) -> None:
    with socket.create_server(("127.0.0.1", appliance.ports["imaps"])):
        appliance.populate(())
        with pytest.raises(AssertionError) as failed:
            appliance.start()
    said = str(failed.value)
    assert str(appliance.ports["imaps"]) in said
    assert "[imap] listen_tls" in said
    assert "Traceback" not in said


def test_missing_tables_are_refused_with_the_command_that_makes_them(appliance: Appliance) -> None:
    with pytest.raises(AssertionError) as failed:
        appliance.start()
    assert "migrate" in str(failed.value)
    assert "Traceback" not in str(failed.value)
    appliance.ctl("migrate")
    appliance.start()
    assert appliance.stop() == 0


def test_wrong_setting_is_named_with_value_and_expectation(appliance: Appliance) -> None:
    appliance.config.write_text(appliance.config.read_text().replace("workers = 1", "workers = 0"))
    done = subprocess.run(
        [sys.executable, "-m", "pymx", "serve", "--config", str(appliance.config)],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 1
    assert re.search(r"workers = 0: expected .*>= 1", done.stderr)


def test_wrong_certificate_file_is_named(appliance: Appliance) -> None:
    appliance.populate(())
    (appliance.directory / "tls" / "key.pem").write_text("no key\n")
    with pytest.raises(AssertionError) as failed:
        appliance.start()
    assert "key.pem" in str(failed.value)
    assert "Traceback" not in str(failed.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to drop")
@pytest.mark.parametrize("workers", [1, 2])
def test_root_becomes_the_configured_user_before_it_serves(appliance: Appliance, workers: int) -> None:
    """Every process runs as that user, with its groups alone, and mail flows."""
    user = pwd.getpwnam("mail")
    appliance.python, appliance.environment = python_for("mail")
    appliance.workers = workers
    appliance.write_config()
    appliance.populate()
    appliance.config.write_text(appliance.config.read_text().replace('user = "none"', 'user = "mail"'))
    for path in (appliance.directory, *appliance.directory.rglob("*")):
        os.chown(path, user.pw_uid, user.pw_gid)
    appliance.start()
    assert appliance.process is not None
    pids = [appliance.process.pid, *children(appliance.process.pid)]
    assert len(pids) == (1 if workers == 1 else workers + 2)
    for pid in pids:
        status = Path(f"/proc/{pid}/status").read_text()
        assert re.search(rf"^Uid:\t{user.pw_uid}\t{user.pw_uid}\t{user.pw_uid}\t", status, re.M)
        assert re.search(rf"^Gid:\t{user.pw_gid}\t", status, re.M)
        assert re.search(r"^CapEff:\t0+$", status, re.M)
    appliance.submit("alice", appliance.address("bob"), "as mail")
    appliance.wait_for_subject("bob", "as mail")
    assert appliance.stop() == 0


def test_user_who_cannot_read_our_python_is_named_before_anything_is_served(appliance: Appliance) -> None:
    if os.geteuid() != 0 or os.stat(os.path.dirname(os.__file__)).st_mode & 0o005 == 0:
        pytest.skip("needs root")
    if not os.path.realpath(os.__file__).startswith("/root/"):
        pytest.skip("this Python is one that everybody may read")
    appliance.config.write_text(appliance.config.read_text().replace('user = "none"', 'user = "mail"'))
    with pytest.raises(AssertionError) as failed:
        appliance.start()
    assert 'user = "mail" can\'t read' in str(failed.value)
    assert "Traceback" not in str(failed.value)


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("workers", [1, 2])
def test_sockets_handed_over_by_systemd_are_served(appliance: Appliance, workers: int) -> None:
    """sd_listen_fds(3): the listener is taken by its name; ours is not bound a second time."""
    activate = shutil.which("systemd-socket-activate")
    if activate is None:
        pytest.skip("systemd-socket-activate is not installed")
    appliance.workers = workers
    appliance.write_config()
    appliance.populate()
    port = appliance.ports["smtp"]
    with appliance.log_path.open("ab") as log:
        process = subprocess.Popen(
            [activate, f"--listen=127.0.0.1:{port}", "--fdname=smtp", "-E", "PATH", sys.executable, "-m", "pymx",
             "serve", "--config", str(appliance.config)],
            stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
        )  # fmt: skip
    appliance.process = process
    # the first connection starts the server and waits in the backlog until it serves
    client = wait_for(lambda: connected(port))
    with client:
        assert client.recv(100).startswith(b"220 ")
    with smtplib.SMTP("127.0.0.1", port, timeout=20) as smtp:
        smtp.sendmail("x@elsewhere.example", [appliance.address("bob")], "Subject: handed over\r\n\r\nx\r\n")
    appliance.wait_for_subject("bob", "handed over")
    assert appliance.stop() == 0


def test_socket_of_a_name_that_means_nothing_is_refused(appliance: Appliance) -> None:
    """It would be held open and never served."""
    activate = shutil.which("systemd-socket-activate")
    if activate is None:
        pytest.skip("systemd-socket-activate is not installed")
    port = free_port()
    with subprocess.Popen(
        [activate, f"--listen=127.0.0.1:{port}", "--fdname=mail", "-E", "PATH", sys.executable, "-m", "pymx",
         "serve", "--config", str(appliance.config)],
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        wait_for(lambda: connected(port)).close()
        said = process.communicate(timeout=30)[1]
    assert process.returncode == 1
    assert "socket named mail" in said


def test_lmtp_socket_may_lie_in_the_runtime_directory(appliance: Appliance) -> None:
    """Made before the socket is bound."""
    path = appliance.directory / "run" / "lmtp.sock"
    appliance.config.write_text(
        appliance.config.read_text().replace(f'"127.0.0.1:{appliance.ports["lmtp"]}"', f'"unix:{path}"')
    )
    appliance.populate()
    appliance.start()
    with smtplib.LMTP(str(path), timeout=20) as client:
        client.sendmail("x@elsewhere.example", [appliance.address("bob")], "Subject: by a socket\r\n\r\nx\r\n")
    appliance.wait_for_subject("bob", "by a socket")
    assert appliance.stop() == 0


def connected(port: int) -> socket.socket | None:
    try:
        client = socket.create_connection(("127.0.0.1", port), timeout=1)
    except OSError:
        return None
    client.settimeout(30)
    return client


def test_killed_worker_is_replaced_and_mail_flows_on(appliance: Appliance) -> None:
    appliance.workers = 2
    appliance.write_config()
    appliance.populate()
    appliance.start()
    assert appliance.process is not None
    before = children(appliance.process.pid)
    for pid in before:
        os.kill(pid, 9)
    wait_for(
        lambda: len(now := children(appliance.process.pid)) == len(before) and not set(now) & set(before),
        timeout_s=5,
        what="new processes",
    )
    wait_for(lambda: delivered(appliance, "after the kill"), timeout_s=10, what="mail after the kill")
    assert appliance.stop() == 0


def delivered(appliance: Appliance, subject: str) -> bool:
    try:
        appliance.submit("alice", appliance.address("bob"), subject)
    except (OSError, smtplib.SMTPException):
        return False
    appliance.wait_for_subject("bob", subject)
    return True


def test_queue_is_listed_held_released_and_removed_by_pymxctl(appliance: Appliance) -> None:
    remote = ScriptedRemote(replies={"CONNECT": ["421 4.3.2 come back later"] * 3})
    remote.start()
    try:
        appliance.extra = {
            "outbound": "allow_private = true\nretry_first = 3600\n"
            f'[[outbound.route]]\ndomain = "*"\nhost = "127.0.0.1"\nport = {remote.port}\ntls = "none"\n'
        }
        appliance.write_config()
        appliance.populate()
        appliance.start()
        for name in ("first", "second"):
            appliance.submit("alice", f"{name}@remote.test", name)

        def entries() -> list[dict[str, object]]:
            listed = appliance.ctl_json("queue", "list")
            return list(listed if isinstance(listed, list) else listed["messages"])

        wait_for(lambda: "421" in appliance.log(), what="a deferred delivery")
        assert len(entries()) == 2
        queue_id = next(str(e.get("queue_id") or e.get("id")) for e in entries())
        shown = appliance.ctl("queue", "show", queue_id).stdout
        assert "come back later" in shown
        appliance.ctl("queue", "hold", queue_id)
        appliance.ctl("queue", "release", queue_id)
        appliance.ctl("queue", "remove", queue_id)
        assert len(entries()) == 1
        remote.replies.clear()
        appliance.ctl("queue", "retry", "--all")
        wait_for(lambda: len(remote.messages) == 1, what="the retried message")
        wait_for(lambda: entries() == [], what="an empty queue")
        assert appliance.stop() == 0
    finally:
        remote.stop()


def test_full_disk_answers_452_and_shows_nothing_half_written(appliance: Appliance, tmp_path: Path) -> None:
    """452 4.3.1 while there is no room, delivery when there is again; a tmpfs of its own plays the disk."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"can't mount a tmpfs: {mounted.stderr.decode().strip()}")
    try:
        text = appliance.config.read_text().replace(f'root = "{appliance.directory}/vmail"', f'root = "{small}/vmail"')
        appliance.config.write_text(text)
        appliance.populate()
        appliance.start()
        inbound(appliance, "fits")
        ballast = small / "ballast"
        with pytest.raises(OSError, match="No space"):
            ballast.write_bytes(b"x" * 6_000_000)
        with pytest.raises(smtplib.SMTPResponseException) as refused:
            inbound(appliance, "does not fit", octets=300_000)
        assert refused.value.smtp_code == 452
        assert b"4.3.1" in bytes(refused.value.smtp_error)
        ballast.unlink()
        inbound(appliance, "fits again")
        assert appliance.subjects("bob") == ["fits", "fits again"]
        assert appliance.stop() == 0
    finally:
        appliance.kill()
        subprocess.run(["umount", str(small)], check=True)


def inbound(appliance: Appliance, subject: str, octets: int = 10) -> None:
    with smtplib.SMTP("127.0.0.1", appliance.ports["smtp"], timeout=20) as client:
        body = "x" * 70 + "\r\n"
        client.sendmail(
            "x@elsewhere.example", [appliance.address("bob")], f"Subject: {subject}\r\n\r\n{body * (octets // 72 + 1)}"
        )

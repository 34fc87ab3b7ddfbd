"""A terminal of its own for a program that wants one."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path


def run_on_terminal(
    *command: str,
    timeout_s: float = 60,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    answers: Sequence[tuple[str, str]] = (),
) -> tuple[int, str]:
    """Run `command` with a new terminal as its controlling one. Returns (exit status, what it drew).

    `answers` are questions in their order, and what is typed at each.
    AssertionError with the screen when it has not ended after `timeout_s`; it is killed then.
    """
    screen, terminal = pty.openpty()
    drawn = bytearray()
    questions, read = list(answers), 0
    try:
        process = subprocess.Popen(
            command, stdin=terminal, stdout=terminal, stderr=terminal, env=env, cwd=cwd, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        end = time.monotonic() + timeout_s
        while process.poll() is None:
            # a full terminal would stop the program
            if select.select([screen], [], [], 0.05)[0]:
                drawn += os.read(screen, 65536)
            if questions and (at := drawn.find(questions[0][0].encode(), read)) >= 0:
                read = at + len(questions[0][0])
                os.write(screen, questions.pop(0)[1].encode() + b"\n")
            if time.monotonic() > end:
                process.kill()
                process.wait()
                raise AssertionError(
                    f"{command[0]} did not end within {timeout_s} s:\n{drawn.decode(errors='replace')}"
                )
        return process.returncode, drawn.decode(errors="replace")
    finally:
        os.close(screen)
        os.close(terminal)

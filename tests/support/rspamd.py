"""A real rspamd on loopback, with rules of the tests' own and nothing that asks the network.

With `learning=True` it has a controller (password `CONTROLLER_PASSWORD`) and a Bayes classifier in a redis-server of
its own, which judges after one message of each kind.

A message chooses what happens to it by its Subject: `score N`, `action NAME` (soft reject, reject, greylist, …, with a
text for the peer), `fields` (milter fields are added and removed), `sleep N`. What rspamd was told of the session is
in the field X-Told that it adds to every message.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from support.ports import answers, free_port
from support.wait import wait_for

_CONFIG = """
lua = "{directory}/rules.lua";
modules {{ path = "{directory}/none"; }}
options {{
    filters = "";
    cache_file = "{directory}/symbols.cache";
    dynamic_conf = "{directory}/dynamic";
    control_socket = "{directory}/control.sock mode=0600";
    hs_cache_dir = "{directory}/";
    tempdir = "{directory}";
    url_tld = "/usr/share/rspamd/effective_tld_names.dat";
    pidfile = "{directory}/rspamd.pid";
    max_message = 2Mb;
    dns {{ nameserver = ["127.0.0.1:{port}:1"]; timeout = 0.1s; retransmits = 1; }}
}}
logging {{ type = "file"; filename = "{directory}/rspamd.log"; level = "info"; }}
actions {{ reject = 15; "rewrite subject" = 10; "add header" = 6; greylist = 4; subject = "SPAM %s"; }}
worker "normal" {{ bind_socket = "127.0.0.1:{port}"; count = 1; }}
"""
CONTROLLER_PASSWORD = "a controller's password"
_LEARNING = """
worker "controller" {{
    bind_socket = "127.0.0.1:{controller_port}"; count = 1;
    password = "{password}"; secure_ip = [];
}}
classifier "bayes" {{
    tokenizer {{ name = "osb"; }}
    backend = "redis"; servers = "127.0.0.1:{redis_port}";
    min_tokens = 1; min_learns = 1; autolearn = false;
    statfile {{ symbol = "BAYES_HAM"; spam = false; }}
    statfile {{ symbol = "BAYES_SPAM"; spam = true; }}
}}
"""
_WEIGHTS = """
rspamd_config:set_metric_symbol({name = 'BAYES_SPAM', score = 7.0})
rspamd_config:set_metric_symbol({name = 'BAYES_HAM', score = -3.0})
"""
_RULES = """
local function told(task)
  local from = task:get_from('smtp') or {}
  local rcpt = {}
  for _, r in ipairs(task:get_recipients('smtp') or {}) do table.insert(rcpt, r.addr) end
  local out = {
    'ip=' .. tostring(task:get_from_ip()), 'helo=' .. tostring(task:get_helo()),
    'from=' .. ((from[1] or {}).addr or ''), 'rcpt=' .. table.concat(rcpt, ','),
    'user=' .. (task:get_user() or ''), 'queue_id=' .. tostring(task:get_queue_id()),
    'mta=' .. tostring(task:get_request_header('MTA-Name')),
    'tls=' .. tostring(task:get_request_header('TLS-Version')),
    'hostname=' .. tostring(task:get_hostname()), 'size=' .. tostring(task:get_size()),
  }
  return table.concat(out, ' ')
end

rspamd_config:register_symbol({
  name = 'TEST_SUBJECT', type = 'normal', score = 1.0,
  callback = function(task)
    local subject = task:get_subject() or ''
    local add, remove = {['X-Told'] = told(task)}, {}
    local score = subject:match('^score ([%d.-]+)')
    if score then task:insert_result('TEST_SUBJECT', tonumber(score), 'by subject') end
    local action, text = subject:match('^action ([%a ]+): (.*)')
    if action then task:set_pre_result(action, text, 'test') end
    if subject:match('^fields') then
      add['X-Added'] = {{value = 'one', order = 1}, {value = 'two\\n\\tfolded', order = 1}}
      add['X-Spam-Score'] = 'mine'
      add['X-Bad Name'] = 'x'
      remove = {['X-Old'] = 0, ['X-Second'] = 2}
    end
    task:set_milter_reply({add_headers = add, remove_headers = remove})
    return false
  end
})
"""


class RealRspamd:
    """One rspamd with one worker; `url` and `controller_url` are what `[rspamd]` takes."""

    def __init__(self, *, learning: bool = False) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="pymx-rspamd-"))
        self.port, self.controller_port = free_port(), free_port()
        self._redis: subprocess.Popen[bytes] | None = None
        config = _CONFIG.format(directory=self.directory, port=self.port)
        if learning:
            redis_port = free_port()
            config += _LEARNING.format(
                controller_port=self.controller_port, redis_port=redis_port, password=CONTROLLER_PASSWORD
            )
            self._start_redis(redis_port)
        (self.directory / "rules.lua").write_text(_RULES + (_WEIGHTS if learning else ""))
        (self.directory / "none").mkdir()
        (self.directory / "rspamd.conf").write_text(config)
        user = ["-u", "_rspamd", "-g", "_rspamd"] if os.geteuid() == 0 else []
        if user:
            shutil.chown(self.directory, "_rspamd", "_rspamd")
        self._process = subprocess.Popen(
            ["rspamd", "-f", "-c", str(self.directory / "rspamd.conf"), *user],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for(lambda: self._answers(self.port), timeout_s=60, what="rspamd answers")
            if learning:
                wait_for(lambda: self._answers(self.controller_port), timeout_s=60, what="rspamd's controller answers")
        except BaseException:
            self.stop()
            raise

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def controller_url(self) -> str:
        return f"http://127.0.0.1:{self.controller_port}"

    def _start_redis(self, port: int) -> None:
        self._redis = subprocess.Popen(
            ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self.directory)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(lambda: answers(port), timeout_s=60, what="redis-server answers")

    def _answers(self, port: int) -> bool:
        if self._process.poll() is not None:
            raise AssertionError(f"rspamd ended:\n{(self.directory / 'rspamd.log').read_text()[-3000:]}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=1) as response:
                return response.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def stop(self) -> None:
        for process in (self._process, self._redis):
            if process is None or process.poll() is not None:
                continue
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

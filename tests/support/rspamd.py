"""A real rspamd on loopback, with rules of the tests' own and nothing that asks the network.

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

from support.ports import free_port
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
    """One rspamd with one worker; `url` is what `[rspamd] url` takes."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="pymx-rspamd-"))
        self.port = free_port()
        (self.directory / "rules.lua").write_text(_RULES)
        (self.directory / "none").mkdir()
        (self.directory / "rspamd.conf").write_text(_CONFIG.format(directory=self.directory, port=self.port))
        user = ["-u", "_rspamd", "-g", "_rspamd"] if os.geteuid() == 0 else []
        if user:
            shutil.chown(self.directory, "_rspamd", "_rspamd")
        self._process = subprocess.Popen(
            ["rspamd", "-f", "-c", str(self.directory / "rspamd.conf"), *user],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for(self._answers, timeout_s=20, what="rspamd answers")
        except BaseException:
            self.stop()
            raise

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            raise AssertionError(f"rspamd ended:\n{(self.directory / 'rspamd.log').read_text()[-3000:]}")
        try:
            with urllib.request.urlopen(f"{self.url}/ping", timeout=1) as response:
                return response.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

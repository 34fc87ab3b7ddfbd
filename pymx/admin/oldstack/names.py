"""Settings of Postfix and Dovecot that need no setting here, and why where that is not plain."""

from __future__ import annotations

_POSTFIX = (
    "alias_database", "append_at_myorigin", "append_dot_mydomain", "authorized_submit_users", "biff",
    "bounce_queue_lifetime", "command_directory", "compatibility_level", "config_directory", "daemon_directory",
    "data_directory", "debug_peer_level", "debugger_command", "default_process_limit", "default_transport",
    "dovecot_destination_recipient_limit", "enable_original_recipient", "html_directory", "in_flow_delay",
    "local_recipient_maps", "local_transport", "mail_name", "mail_owner", "mail_version", "mailbox_command",
    "mailbox_size_limit", "maillog_file", "maillog_file_permissions", "maillog_file_prefixes", "mailq_path",
    "manpage_directory", "meta_directory", "milter_mail_macros", "milter_protocol", "mydomain", "myorigin",
    "newaliases_path", "non_smtpd_milters", "notify_classes", "queue_directory", "queue_run_delay",
    "readme_directory", "relay_transport", "sample_directory", "sendmail_path", "setgid_group", "shlib_directory",
    "smtp_address_preference", "smtp_sasl_auth_enable", "smtp_sasl_mechanism_filter", "smtp_sasl_security_options",
    "smtp_sasl_tls_security_options", "smtp_tls_security_level", "smtpd_banner", "smtpd_client_auth_rate_limit",
    "smtpd_client_new_tls_session_rate_limit", "smtpd_delay_reject", "smtpd_timeout", "tls_random_source",
    "unknown_local_recipient_reject_code", "virtual_gid_maps", "virtual_mailbox_base", "virtual_mailbox_limit",
    "virtual_minimum_uid", "virtual_uid_maps", "smtpd_data_end_of_data", "smtpd_discard_ehlo_keywords",
)  # fmt: skip
POSTFIX_SAME = {
    **dict.fromkeys(_POSTFIX, ""),
    "disable_vrfy_command": "VRFY tells nothing",
    "mailbox_transport": "mail is stored by the same program",
    "milter_default_action": "[rspamd] when_down",
    "smtp_dns_support_level": "DANE is used where the name server validates ([dns] authenticated)",
    "smtpd_forbid_bare_newline": "bare newlines are refused",
    "smtpd_helo_required": "HELO is always required",
    "smtpd_reject_unlisted_recipient": "unknown recipients are refused",
    "smtputf8_enable": "SMTPUTF8 is always there",
    "strict_rfc821_envelopes": "always",
    "virtual_transport": "mail is stored by the same program",
}

_DOVECOT = (
    "auth_debug", "auth_verbose", "base_dir", "debug_log_path", "default_internal_group", "default_internal_user",
    "default_login_user", "dovecot_config_version", "dovecot_storage_version", "first_valid_gid", "first_valid_uid",
    "imap_capability", "imap_idle_notify_interval", "info_log_path", "instance_name", "last_valid_uid",
    "lmtp_save_to_detail_mailbox", "lock_method", "login_greeting", "mail_access_groups", "mail_debug", "mail_gid",
    "mail_home", "mail_max_keyword_length", "mail_privileged_group", "maildir_copy_with_hardlinks",
    "maildir_stat_dirs", "maildir_very_dirty_syncs", "mmap_disable", "namespace_inbox", "shutdown_clients",
    "sql_driver", "ssl_prefer_server_ciphers", "ssl_server_dh_file", "state_dir", "verbose_proctitle",
)  # fmt: skip
DOVECOT_SAME = {
    "ssl_client_ca_dir": "the system's roots",
    "ssl_client_ca_file": "[outbound] ca_file",
    **dict.fromkeys(_DOVECOT, ""),
    "auth_allow_cleartext": "no password is taken without TLS",
    "auth_cache_size": "[database] cache_s",
    "auth_cache_ttl": "[database] cache_s",
    "auth_failure_delay": "[limits] slow_max_s",
    "auth_username_format": "addresses are compared without case",
    "disable_plaintext_auth": "no password is taken without TLS",
    "hostname": "see Postfix's myhostname",
    "log_path": "the log goes to the journal",
    "mail_attribute_dict": "METADATA is kept in the same file",
    "mail_fsync": "everything acknowledged is on disk",
    "mailbox_list_index": "pymx has an index of its own",
    "recipient_delimiter": "see Postfix's",
    "ssl_cipher_list": "the ciphers are OpenSSL's own choice",
    "ssl_dh": "no finite-field Diffie-Hellman is offered",
}

"""Sender Policy Framework (RFC 7208): may this host send mail in that domain's name?"""

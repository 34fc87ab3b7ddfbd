"""About a hundred messages, the usual and the odd, each with a name; LF line ends, `wire` makes them CRLF."""

from __future__ import annotations

import email.policy
import functools
import random
from email.message import EmailMessage

_HEADERS = {
    "plain": "From: Ann Example <ann@example.org>\nTo: bob@example.net\nSubject: Hello\n"
    "Date: Wed, 17 Jul 1996 02:44:25 -0700\nMessage-ID: <1@example.org>",
    "no from": "Subject: nobody",
    "sender and reply-to": "From: a@b.example\nSender: s@b.example\nReply-To: r@b.example, R2 <r2@b.example>",
    "empty sender": "From: a@b.example\nSender:\nReply-To: ",
    "group": "To: Friends: a@b.example, C D <c@d.example>;, last@x.example\nFrom: x@y.example",
    "empty group": "To: undisclosed-recipients:;\nFrom: x@y.example",
    "group with space": "To: A Group : ;\nFrom: x@y.example",
    "comments": "From: (before) ann (the (nested) one) @ example.org (after)\nTo: bob@example.net (Bob B)",
    "comment in phrase": "From: Ann (x) Example <ann@example.org>",
    "escaped comment": "From: ann@example.org (a \\) b)",
    "route": "From: <@one.example,@two.example:ann@example.org>\nTo: X <@r.example:bob@example.net>",
    "quoted phrase": 'From: "Example, Ann \\"Q\\" \\\\" <ann@example.org>',
    "quoted local part": 'From: "ann example"@example.org\nTo: X <"a@b"@example.org>',
    "empty quoted phrase": 'From: "" <ann@example.org>',
    "domain literal": "From: ann@[192.0.2.1]\nTo: X <b@[IPv6:2001:db8::1]>",
    "dots and spaces": "From: ann . b @ example . org\nTo: John Q. Public <jqp@example.org>",
    "encoded words": "From: =?utf-8?Q?J=C3=B6rg?= =?utf-8?B?w7Y=?= <j@example.org>\nSubject: =?utf-8?q?=C3=B6?= x",
    "folded": "From: Ann\n Example\n\t<ann@example.org>\nSubject: one\n two\n\tthree\nTo: a@b.example,\n c@d.example",
    "white space around": "Subject:    spaces   \nFrom:   ann@example.org  ",
    "no space after colon": "Subject:tight\nFrom:ann@example.org",
    "space before colon": "Subject : loose\nFrom : ann@example.org",
    "case of names": "SUBJECT: s\nfrom: a@b.example\nmEsSaGe-Id: <x@y>",
    "duplicates": "Subject: one\nSubject: two\nFrom: a@b.example\nFrom: c@d.example\nMessage-ID: <1>\nMessage-ID: <2>",
    "references": "In-Reply-To: <a@b>\n <c@d>\nReferences: <x@y>\nMessage-ID: <z@z>",
    "eight-bit": "Subject: gr\u00fc\u00df\nFrom: J\u00f6rg <j@example.org>\nTo: a@b\u00fc.example",
    "quotes in subject": 'Subject: he said "x\\y" and "z" """""\nFrom: a@b.example',
    "no domain": "From: root\nTo: Root <root>",
    "semicolons": "From: a@b.example\nTo: a@b.example; c@d.example",
    "trailing comma": "To: a@b.example, , c@d.example,\nFrom: a@b.example",
    "angle only": "From: <ann@example.org>\nTo: <bob@example.net>, <carol@example.net>",
    "no space before angle": 'From: Ann<ann@example.org>\nTo: "Bob"<bob@example.net>',
    "bcc": "From: a@b.example\nBcc: hidden@example.org",
    "long": "From: a@b.example\nTo: " + ",\n ".join(f"Person {n} <person{n}@example.org>" for n in range(120)),
    "empty fields": "From:\nTo:\nSubject:\nDate:\nMessage-ID:\nIn-Reply-To:",
    "a line that is no field": "From: a@b.example\nthis is no field\nSubject: after it",
    "white line in folding": "Subject: a\n \n b\nFrom: a@b.example",
    "control": "Subject: bell\x07 and tab\there\nFrom: a\x01b <a@b.example>",
    "atoms of phrase": "From: a.b c/d 'e' f <x@y.example>",
    "at in phrase": 'From: "ann@example.org" <ann@example.org>',
    "many comments": "To: (a)(b) x@y.example (c)(d), (e) z@w.example",
    "colon behind address": "From: a@b.example: c\nTo: x@y.example",
    "comment behind angle": "From: <ann@example.org> (Ann)\nTo: (Bob) <bob@example.org>, X <x@y.example> (z)",
    "single quotes": "From: 'Ann' <ann@example.org>",
    "obsolete date": "Date: 17 Jul 96 02:44 PDT (comment)",
}

_TYPES = {
    "html": "Content-Type: text/html; charset=utf-8",
    "upper case": "Content-Type: TEXT/PLAIN; CHARSET=US-ASCII\nContent-Transfer-Encoding: BASE64",
    "no charset": "Content-Type: text/plain; format=flowed",
    "image": 'Content-Type: image/png; name="a b.png"\nContent-Transfer-Encoding: base64\n'
    'Content-Disposition: inline; filename="a b.png"\nContent-ID: <1@x>',
    "all fields": "Content-Type: application/pdf\nContent-ID: <x@y>\nContent-Description: the report\n"
    "Content-MD5: Q2hlY2sgSW50ZWdyaXR5IQ==\nContent-Language: en, de-AT\nContent-Location: http://x.example/a\n"
    "Content-Disposition: attachment; filename=report.pdf; size=12",
    "one language": "Content-Type: text/plain\nContent-Language: de",
    "comments in type": "Content-Type: text/plain (a comment); charset=utf-8 (another)",
    "spaces in type": "Content-Type:  text / html ; charset = utf-8 ;",
    "folded parameters": 'Content-Type: application/x-foo;\n\tname="long name";\n x=y',
    "continuations": 'Content-Type: application/x-foo; name*0="long "; name*1="name"; x=y',
    "extended": "Content-Type: application/x-foo; name*=utf-8'en'a%20b",
    "extended continuations": "Content-Type: application/x-foo; name*0*=utf-8''a%20; name*1*=b%20c",
    "continuations out of order": 'Content-Type: application/x-foo; name*1="b"; name*0="a"',
    "continuations with a gap": 'Content-Type: application/x-foo; name*0="a"; name*2="c"',
    "quoted pairs": 'Content-Type: application/x-foo; name="a\\"b\\\\c;d"',
    "empty parameter": 'Content-Type: application/x-foo; name=""',
    "disposition only": "Content-Disposition: ATTACHMENT",
    "disposition extended": "Content-Disposition: attachment; filename*=utf-8''%C3%B6.txt",
    "encoded word in name": 'Content-Type: application/x-foo; name="=?utf-8?q?=C3=B6?="',
    "delivery status": "Content-Type: message/delivery-status",
    "partial": 'Content-Type: message/partial; id="x"; number=1; total=2',
    "duplicate type": "Content-Type: text/html; charset=x\nContent-Type: text/plain; charset=y",
    "multipart without boundary": "Content-Type: multipart/mixed",
    "multipart without parts": "Content-Type: multipart/mixed; boundary=zzz",
    "quoted boundary": 'Content-Type: multipart/mixed; boundary="a b (c)"',
    "encoding with comment": "Content-Type: text/plain\nContent-Transfer-Encoding: 8bit (yes)",
    "id with comment": "Content-Type: text/plain\nContent-ID: <x@y>",
    "description encoded": 'Content-Type: text/plain\nContent-Description: =?utf-8?q?=C3=B6?= "q"',
}

_WHOLE = {
    "mixed": 'Content-Type: multipart/mixed; boundary="b"\n\npreamble\n--b\n\nfirst\n--b\nContent-Type: text/html\n\n'
    "<p>second</p>\n\n--b--\nepilogue\n",
    "nested": "Content-Type: multipart/mixed; boundary=outer\n\n--outer\n"
    "Content-Type: multipart/alternative; boundary=inner\n\n--inner\n\nplain\n--inner\nContent-Type: text/html\n\n"
    "<b>x</b>\n--inner--\n\n--outer\nContent-Type: image/gif\nContent-Transfer-Encoding: base64\n\nR0lG\n--outer--\n",
    "prefix boundaries": "Content-Type: multipart/mixed; boundary=foo\n\n--foo\n"
    "Content-Type: multipart/mixed; boundary=foobar\n\n--foobar\n\nin\n--foobar--\n--foo\n\nout\n--foo--\n",
    "prefix boundaries reversed": "Content-Type: multipart/mixed; boundary=foobar\n\n--foobar\n"
    "Content-Type: multipart/mixed; boundary=foo\n\n--foo\n\nin\n--foo--\n--foobar\n\nout\n--foobar--\n",
    "inner not closed": "Content-Type: multipart/mixed; boundary=o\n\n--o\n"
    "Content-Type: multipart/mixed; boundary=i\n\n--i\n\nin\n--o\n\nout\n--o--\n",
    "not closed": "Content-Type: multipart/mixed; boundary=o\n\n--o\n\none\n--o\n\ntwo\n",
    "empty parts": "Content-Type: multipart/mixed; boundary=o\n\n--o\n--o\nX: y\n--o\n\n--o\n\n\n--o--\n",
    "same boundary twice": "Content-Type: multipart/mixed; boundary=o\n\n--o\n"
    "Content-Type: multipart/mixed; boundary=o\n\n--o\n\nx\n--o--\nepilogue\n--o\n\ny\n--o--\n",
    "text after close": "Content-Type: multipart/mixed; boundary=o\n\n--o\n\none\n--o--\n\n--o\n\nghost\n--o--\n",
    "spaces after boundary": "Content-Type: multipart/mixed; boundary=o\n\n--o  \n\none\n--o--  \n",
    "dashes in text": "Content-Type: multipart/mixed; boundary=o\n\n--o\n\n-- \nsignature\n--\n--x\n--o--\n",
    "empty body": "Content-Type: multipart/mixed; boundary=o\n\n",
    "rfc822": "Content-Type: message/rfc822\n\nSubject: inner\nFrom: a@b.example\n\nbody\nof two lines\n",
    "rfc822 in rfc822": "Content-Type: message/rfc822\n\nContent-Type: message/rfc822\n\nSubject: deep\n\nbody\n",
    "rfc822 with multipart": "Content-Type: multipart/mixed; boundary=o\n\n--o\nContent-Type: message/rfc822\n\n"
    "Subject: in\nContent-Type: multipart/mixed; boundary=i\n\n--i\n\na\n--i\n\nb\n--i--\n\n--o\n\nlast\n--o--\n",
    "rfc822 empty": "Content-Type: multipart/mixed; boundary=o\n\n--o\nContent-Type: message/rfc822\n\n--o--\n",
    "digest": "Content-Type: multipart/digest; boundary=o\n\n--o\n\nSubject: one\n\n1\n--o\n"
    "Content-Type: text/plain\n\ntwo\n--o--\n",
    "report": "Content-Type: multipart/report; report-type=delivery-status; boundary=o\n\n--o\n\nSorry.\n--o\n"
    "Content-Type: message/delivery-status\n\nReporting-MTA: dns; x\n\nFinal-Recipient: rfc822; a@b\n\n--o\n"
    "Content-Type: message/rfc822\n\nFrom: a@b.example\nSubject: lost\n\ntext\n--o--\n",
    "signed": 'Content-Type: multipart/signed; micalg=pgp-sha256;\n protocol="application/pgp-signature"; boundary=o\n'
    "\n--o\nContent-Type: text/plain\n\ntext\n\n--o\nContent-Type: application/pgp-signature; name=signature.asc\n"
    "Content-Description: OpenPGP digital signature\n\n-----BEGIN PGP SIGNATURE-----\nabc\n-----END-----\n\n--o--\n",
    "no body": "Subject: header only\n",
    "no line end": "Subject: header only",
    "no header": "\nbody only\n",
    "no last line end": "Subject: x\n\nno line end",
    "eight-bit body": "Content-Type: text/plain; charset=utf-8\n\n\u00e4\u00f6\u00fc\n",
    "torn at a delimiter": "Content-Type: multipart/mixed; boundary=o\n\n--o\n\none\n--o",
    "delimiter last": "Content-Type: multipart/mixed; boundary=o\n\n--o\n\none\n--o\n",
    "boundary at header": "Content-Type: multipart/mixed; boundary=o\n--o\n\nx\n--o--\n",
}


@functools.cache
def corpus() -> dict[str, bytes]:
    """All messages by name, with LF line ends."""
    out: dict[str, bytes] = {}
    for name, header in _HEADERS.items():
        out[f"header: {name}"] = f"{header}\n\nbody\n".encode()
    for name, header in _TYPES.items():
        out[f"type: {name}"] = f"From: a@b.example\nMIME-Version: 1.0\n{header}\n\nsome body\nof two lines\n".encode()
    for name, text in _WHOLE.items():
        out[f"whole: {name}"] = text.encode()
    for seed in range(30):
        out[f"generated: {seed}"] = _generated(random.Random(seed))
    return out


def wire(message: bytes) -> bytes:
    return message.replace(b"\n", b"\r\n")


def _generated(rng: random.Random) -> bytes:
    """What mail programs write: text, perhaps HTML, attachments, inline pictures, forwarded messages."""
    message = EmailMessage(policy=email.policy.SMTP.clone(linesep="\n"))
    message["From"] = rng.choice(["Ann Example <ann@example.org>", "J\u00f6rg M\u00fcller <j@example.org>"])
    message["To"] = ", ".join(f"Person {n} <p{n}@example.net>" for n in range(rng.randint(1, 6)))
    message["Subject"] = rng.choice(["Hello", "Gr\u00fc\u00dfe aus K\u00f6ln " * rng.randint(1, 5), "Re: x"])
    message["Date"] = "Tue, 24 Nov 2026 10:00:00 +0100"
    message["Message-ID"] = f"<{rng.getrandbits(64):x}@example.org>"
    text = "\n".join(
        "word " * rng.randint(0, 14) + rng.choice(["", "\u00e9t\u00e9"]) for _ in range(rng.randint(1, 30))
    )
    message.set_content(text + "\n")
    if rng.random() < 0.7:
        message.add_alternative(f"<html><body><p>{text}</p></body></html>\n", subtype="html")
    for number in range(rng.choice([0, 0, 1, 3])):
        message.add_attachment(
            rng.randbytes(rng.randint(1, 3000)),
            maintype="application",
            subtype=rng.choice(["pdf", "octet-stream"]),
            filename=rng.choice([f"file {number}.pdf", f"\u00fcbersicht {number}.pdf", "n" * 90 + ".bin"]),
        )
    if rng.random() < 0.3:
        inner = EmailMessage(policy=email.policy.SMTP.clone(linesep="\n"))
        inner["Subject"] = "forwarded"
        inner["From"] = "c@example.com"
        inner.set_content("inner text\n")
        message.add_attachment(inner)
    for number, part in enumerate(message.walk()):
        if part.is_multipart() and part.get_content_maintype() == "multipart":
            part.set_boundary(f"==={number}.{rng.getrandbits(64):x}===")
    return message.as_bytes()

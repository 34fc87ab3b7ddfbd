"""Arguments of the IMAP commands, one file per family: frozen dataclasses and the parsers that make them.

Every parser takes a `Cursor` that stands behind the command's name and reads to the end of the command; it raises
nothing but `Bad` and `No`.
"""

"""Telling wanted from unwanted mail by what is in it."""

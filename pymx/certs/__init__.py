"""Certificates: from an authority by ACME, or from files that something else keeps up; and when they expire."""

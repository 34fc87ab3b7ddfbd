"""What makes a mail server one that others take mail from: one family of checks in a file, each finding a sentence."""

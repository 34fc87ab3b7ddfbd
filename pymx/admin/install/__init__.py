"""Setting a machine up, step by step: each step says what is missing, and makes only that."""

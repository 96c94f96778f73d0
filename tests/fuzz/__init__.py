"""Fuzzing: every decoder, and the engines under sequences of datagrams (docs/TESTING.md)."""

"""Helpers shared by the tests; nothing here is imported by the product."""

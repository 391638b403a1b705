"""Signing keys and revocations in SQL."""

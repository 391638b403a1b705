"""Ingest and queries."""

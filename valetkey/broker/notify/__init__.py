"""Telling people: one file per way."""

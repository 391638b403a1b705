"""The keeper of the record."""

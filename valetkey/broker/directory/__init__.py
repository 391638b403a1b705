"""Directories: where roles, groups and the state of users come from, one file per kind."""

"""The policy decision point and token service."""

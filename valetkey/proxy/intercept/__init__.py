"""How calls get in."""

"""One file per kind of identity that comes in."""

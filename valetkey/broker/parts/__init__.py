"""One file per part of the broker: which endpoints it has, and what it does in the background."""

"""The spool that survives SIGKILL, and the shipper that empties it."""

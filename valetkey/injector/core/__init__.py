"""Pure: what becomes of a pod. No I/O, no clock, no randomness."""

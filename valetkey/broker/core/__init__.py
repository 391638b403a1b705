"""Pure policy: grants, downscoping, claims. No I/O, no clock."""

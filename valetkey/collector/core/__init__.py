"""Pure: chain, de-duplication, gaps. No I/O, no clock."""

"""Reading and verifying the record from the command line."""

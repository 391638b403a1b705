"""Where the record goes beside the database."""

"""What broker and collector have in common where they keep their state in PostgreSQL."""

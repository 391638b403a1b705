"""One file per kind of credential that goes out."""

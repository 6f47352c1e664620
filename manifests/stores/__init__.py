"""A work folder in an object store: its local folder, its lease, and what of the catalogue lies in the store."""

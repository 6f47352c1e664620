"""Equal names, and the species of a row."""

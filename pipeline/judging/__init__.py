"""Pure functions on tables: which text, which name, which copy, how many."""

"""How many of what: exact shares and caps."""

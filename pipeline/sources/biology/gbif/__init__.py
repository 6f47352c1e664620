"""GBIF's downloads: ask for one, wait for it, fetch it, read it."""

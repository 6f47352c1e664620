"""Look at every image of a work folder or release in a web browser, kept or dropped. Reads; writes nothing there."""

"""URLs in, measured images in a private pool file out: bounded, polite HTTP and one decode an image."""

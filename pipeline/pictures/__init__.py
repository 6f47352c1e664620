"""Bytes to a measured picture: sniff, decode, orient, resize, hash."""

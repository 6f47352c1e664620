"""The demo: real pictures from Debian packages, served on the loopback, taken through the whole chain."""

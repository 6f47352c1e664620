"""The demo: real pictures from Debian packages, served on this machine and taken through the whole chain."""

"""Statements of owners on use: in headers, in robots.txt, and in the files that they name."""

"""Scorers: a model that gives every image and its text one number. See README.md."""

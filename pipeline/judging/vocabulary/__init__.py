"""The meaning of names, ranks and licences."""

"""What names, ranks and licences mean."""

"""Sources of biology: Darwin Core, GBIF, EOL, iNaturalist. Found by entry point alone."""

"""Text beside the picture: cleaning, measures, rules, taxon names and licences. Pure functions on Arrow tables."""

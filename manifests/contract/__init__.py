"""The data contract: tables, catalogue, outcomes, records, releases, settings. What others may read."""

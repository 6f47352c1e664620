"""The eight stages of FLOW, one verb a file: a pure core on tables, one Stage declaration under it."""

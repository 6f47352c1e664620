"""Work on a sealed release: checks, report, takedown."""

"""What is done with a sealed release: checks, report, export, differences, takedown."""

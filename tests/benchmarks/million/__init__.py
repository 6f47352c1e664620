"""What `bench_million.py` stands on: rows and pictures that are made, their web, the build, and what is checked."""

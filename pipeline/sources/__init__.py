"""Readers of sources: one format family a file, rows streamed, never a whole table in memory."""

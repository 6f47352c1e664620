"""Pictures of strangers: what bytes are, opened within bounds, and their pixels as upright sRGB. Imports Pillow."""

"""What a picture of a stranger may cost at most. Constants alone, so that settings can name them without Pillow."""

from __future__ import annotations

MOST_PIXELS = 178_956_970
"""Pillow itself refuses more than twice its MAX_IMAGE_PIXELS (89,478,485)."""

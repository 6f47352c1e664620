"""Limits on the cost of decoding a stranger's picture. Constants alone, so that settings name them without Pillow.

Each bound counts something in the bytes, never seconds: the same bytes end in the same way on any machine.
"""

from __future__ import annotations

MOST_PIXELS = 178_956_970
"""Pillow itself refuses more than twice its MAX_IMAGE_PIXELS (89,478,485)."""
MOST_SCANS = 100
"""Of a JPEG. Encoders write about 10. A scan of no bytes makes the decoder look at every pixel once more."""
MOST_DRAWN = 16
"""A JPEG's pixels times its scans, over the most pixels that a picture may have."""
MOST_SEGMENTS = 10_000
"""Before the first scan of a JPEG. Pillow keeps each in memory, 50 bytes for one of 4."""
MOST_CHUNKS = 100_000
"""Of a PNG. libpng writes 6,000 into 50 MB."""
MOST_BLOCKS = 100_000
"""Of a GIF, before its first picture: each holds up to 255 bytes. Pillow took 0.9 GB for 10 million of them."""
MOST_STRIPS = 100_000
"""Strips or tiles of a TIFF. Pillow makes an object of 300 bytes of each. A picture of 44,000 rows has 44,000."""
MOST_COMMENTS = 100
"""In a PPM of decimal numbers. Pillow reads it anew for each: 20 MB of comments took over 90 s."""
MOST_PROFILE_BYTES = 8 << 20
"""Of a colour profile. Those of printers have up to 3 MB. A larger one counts as none."""
MOST_FILE_BYTES = 1 << 30
"""Of a file that `dalip` reads. As many as MOST_PIXELS take at 6 bytes each; `plantmix` has `image.max_body_bytes`."""

"""The model: CLIP of open_clip, the second-order branch, its losses, weights in and out."""

"""The losses that ship with PlantMix, a module each family; loss.py says what a loss is."""

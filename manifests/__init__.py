"""The base of both packages: errors, settings, storage, the data contract, the catalogue and the release record."""

__version__ = "0.5.0"
"""The version of PlantMix. pyproject.toml, the two commands and the User-Agent header read it from here."""

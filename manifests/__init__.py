"""What both packages stand on: errors, settings, storage, the data contract, catalogue and release record."""

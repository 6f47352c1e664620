"""What is done with sealed releases: side files, card, export, takedown, differences."""

"""A trained model at work: labels and vectors of pictures, and search."""

"""Files from outside: which are pictures, which paths braces stand for, the samples of a tar. Reads only."""

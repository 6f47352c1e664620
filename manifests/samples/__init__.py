"""What others bring: which files are pictures, which paths braces stand for, what a sample of a tar is. Reads only."""

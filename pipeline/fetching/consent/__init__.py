"""What owners say of use: in headers, in robots.txt, and in the files that they name."""

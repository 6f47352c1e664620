"""Draw figures: the same panels as one PNG, or as SVGs in a page that is light, dark or printed."""

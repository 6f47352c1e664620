"""Parts of the HTML report: each gives a fragment from what a build stored."""

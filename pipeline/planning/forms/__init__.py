"""Functional forms from the shares of the domains to one loss, and how they are fitted."""

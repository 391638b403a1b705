"""Incidents: what opens them, what is done about them, what issuers rotate because of them."""

"""Compute that depends on the token: layers, widths and units that some tokens skip."""

"""Toy worlds whose truth is known."""

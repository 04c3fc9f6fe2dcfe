"""Penalties that training adds to its loss."""

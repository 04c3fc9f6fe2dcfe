"""Comparisons with peers, in one run on one machine. Never imported by the package."""

"""Convolutions as linear operators: symbols, Gram matrices, norms."""

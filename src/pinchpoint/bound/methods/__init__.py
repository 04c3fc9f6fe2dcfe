"""Ways to a Lipschitz constant, each a bound by itself."""

"""A model as a graph of operations that bounds can follow, and the check that it is the model."""

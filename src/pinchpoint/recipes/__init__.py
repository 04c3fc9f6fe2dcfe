"""From a recipe to a model: made, compressed, kept in a folder."""

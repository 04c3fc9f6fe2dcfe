"""The stages that a study comes to, and which need which."""

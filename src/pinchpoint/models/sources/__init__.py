"""Where a model comes from: checkpoints, state dicts, libraries, a user's code, exported programs."""

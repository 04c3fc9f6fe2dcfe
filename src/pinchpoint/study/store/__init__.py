"""Where finished stages are kept."""

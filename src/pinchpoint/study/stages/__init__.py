"""What each stage does."""

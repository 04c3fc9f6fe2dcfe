"""One model looked at: measured, bounded, attacked, explained, and what to do about it."""

"""From finished stages to numbers, tests and verdicts."""

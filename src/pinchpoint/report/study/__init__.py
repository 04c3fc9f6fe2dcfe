"""The page of a study: one self-contained HTML file from its summary and runs."""

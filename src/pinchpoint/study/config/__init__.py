"""What a study file may say: families, levels, seeds, scales, claims."""

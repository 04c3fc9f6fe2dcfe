"""Naive, independent versions of what Pinchpoint computes: NumPy, float64, loops where loops are clearest."""

"""Programs of ``torch.export`` (``.pt2``), read without unpickling, into layers that can be measured and changed."""

"""The virtual Ascend device; README.md beside this package describes it."""

"""One exercise a file; see `labkit.check.exercise` for what it is made of."""

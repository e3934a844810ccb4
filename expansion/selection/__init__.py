"""Which images of a generated set are kept: `python -m expansion.filter`."""

"""What every method of dataset expansion shares; it names no method."""

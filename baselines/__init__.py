"""Methods that the two papers compare with."""

"""Methods that the two papers compare with: they make images, or label them (`labels`)."""

"""One image file: its record, pixels and content."""

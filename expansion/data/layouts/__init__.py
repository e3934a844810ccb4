"""From the name or folder that a user gives to the reader of its layout."""

"""Finds the reader of a dataset's layout by the name or folder that a user gives."""

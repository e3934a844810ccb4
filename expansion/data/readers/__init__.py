"""Readers of datasets on disk: class folders, lists, MATLAB files, arrays."""

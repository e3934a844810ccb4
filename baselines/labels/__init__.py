"""What generated images teach where it is not their seed label: DreamDA's Table 8."""

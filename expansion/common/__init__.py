"""Settings, errors, files, seeds: what everything stands on; loads no torch."""

"""Makes an expanded set: plan, run, loop, status."""

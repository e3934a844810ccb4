"""Making an expanded set: plan, shards, loop, status."""

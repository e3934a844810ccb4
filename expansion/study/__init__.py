"""The whole experiment as one command, and the page that tells what came of it."""

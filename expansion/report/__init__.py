"""The page that tells what came of the runs below a folder."""

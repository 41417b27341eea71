"""Pictures as files: where they lie, and their bytes as pixels."""

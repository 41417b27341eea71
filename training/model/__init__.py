"""The classifier: preprocessing, a backbone with its weights, and a head."""

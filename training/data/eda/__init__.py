"""A first look at a data set: statistics, near-duplicates, figures."""

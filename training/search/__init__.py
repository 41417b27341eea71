"""A search: which settings are tried, Optuna's record of the trials, one trial, and what came of them."""

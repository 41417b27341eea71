"""How good a model is: evaluation, calibration, figures, reports, comparisons."""

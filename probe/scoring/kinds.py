"""Names of what targets can be. No torch, so that the command line and the registry know them at once."""

SINGLE_LABEL, MULTI_LABEL, REGRESSION = KINDS = ("single-label", "multi-label", "regression")
REGRESSION_LOSSES = ("mse", "mae")

"""Linear heads solved exactly: regularised multinomial logistic regression to a certified accuracy, no learning rates."""

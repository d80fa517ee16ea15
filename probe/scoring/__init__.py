"""What is asked of heads and how well they do it: kinds of targets, scores, intervals."""

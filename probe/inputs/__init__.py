"""What heads are given: the tokens of a selection, in memory or streamed, through the input transform."""

"""Results on disk: rows, records, predictions and saved heads."""

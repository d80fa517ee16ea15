"""Images on their way to the backbone: read, decoded, preprocessed and handed over in batches."""

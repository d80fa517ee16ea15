"""Names of backbones and the table of their sizes. No torch."""

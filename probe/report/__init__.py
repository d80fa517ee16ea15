"""Results side by side: chosen, grouped over seeds, compared, and written as tables. No torch."""

"""Forward passes of a backbone: device, precision, taps, replicas, and the self-test."""

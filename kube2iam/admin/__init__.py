"""The face to operators: health, metrics."""

"""What the image was built from. The Dockerfile writes these two lines anew; elsewhere nobody knows."""

COMMIT = "unknown"
DATE = "unknown"

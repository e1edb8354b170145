"""AWS IAM roles for Kubernetes pods, through the EC2 metadata address."""

__version__ = "0.1.0"

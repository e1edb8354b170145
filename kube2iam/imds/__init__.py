"""The face to pods: what they see at 169.254.169.254."""

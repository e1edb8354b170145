"""Credentials: obtained from STS, kept fresh, never late and never wrong. Knows requests for roles, no pods."""

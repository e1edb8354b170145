"""What the demo says when it cannot go on."""


class DemoError(Exception):
    """One line for people: what is missing or went wrong, and what to do."""

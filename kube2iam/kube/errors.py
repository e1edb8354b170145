"""What can go wrong between the agent and the API server."""


class ClusterConfigError(ValueError):
    """The agent can't know how to reach the API server. One sentence names the flag or file and the mend."""


class ClusterUnavailableError(Exception):
    """A request that got no answer: no connection, no time left, or nothing to authenticate with. Worth repeating."""

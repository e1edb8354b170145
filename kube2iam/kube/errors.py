"""What can go wrong between the agent and the API server."""


class ClusterConfigError(ValueError):
    """The agent can't know how to reach the API server. One sentence names the flag or file and the mend."""


class ClusterUnavailableError(Exception):
    """A request that got no answer: no connection, no time left, or nothing to authenticate with. Worth repeating."""


def refusal(status: int, message: str = "", *, needs: str = "get, list, watch on pods, namespaces") -> str:
    """A status that is no success, for people, with what the server said and, where rights are missing, the mend."""
    said = f"HTTP {status}: {message}" if message else f"HTTP {status}"
    if status == 401:
        return (
            f"{said}; the agent's token is not accepted: it must be that of its ServiceAccount, as the kubelet mounts "
            "it, or a valid one by --kubeconfig or --api-token"
        )
    if status == 403:
        return f"{said}; the agent's ServiceAccount must be bound to a ClusterRole that allows {needs}"
    return said


def cut(text: str, most: int = 500) -> str:
    """What the other side said, or what was said of it, no longer than a person would read."""
    return text if len(text) <= most else f"{text[:most]}..."

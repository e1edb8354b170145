"""The backend that leaves the kernel alone: somebody else redirects, or nobody needs to."""

from kube2iam.redirect.rule import RedirectRule, Status


class NoneBackend:
    """Does nothing and finds nothing amiss."""

    name = "none"

    def require(self) -> None:
        """Needs nothing."""

    async def ensure(self, rule: RedirectRule) -> str:  # noqa: ARG002 - the backends' interface
        """Leave the rule to others."""
        return ""

    async def remove(self) -> bool:
        """There is nothing of ours."""
        return False

    async def status(self) -> Status:
        """Say so."""
        return Status(present=False, lines=("none: the redirect is not kube2iam's business",))

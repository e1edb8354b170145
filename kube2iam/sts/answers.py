"""AssumeRole as the SDK writes and reads it: parameters, credentials, and what its exceptions mean. Pure."""

import logging
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from kube2iam.domain.roles import AssumeRoleRequest, Credentials
from kube2iam.sts.errors import Fault, Kind, fault

log = logging.getLogger(__name__)

_LONGEST = 32_768
"""Characters of a key or token: the document that pods get stays below the 64 KiB that clients read."""
_LONGEST_BODY = 1 << 20
_SKEW = 900.0
"""Seconds by which AWS's clock may differ from ours and still be believed."""


def keep_status(response_dict: dict[str, Any], **_rest: object) -> None:
    """Leave the status of an answer that is no XML: the SDK's parser would stumble over it and tell nothing else.

    Nor is it given what is much too long for STS: it takes its time with that, and all other threads'.
    """
    body = response_dict["body"]
    failed = response_dict["status_code"] >= HTTPStatus.MULTIPLE_CHOICES
    if len(body) > _LONGEST_BODY or (failed and b"<Error" not in body):
        response_dict["body"] = b"<Error/>"


def parameters(request: AssumeRoleRequest) -> dict[str, Any]:
    """https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html#API_AssumeRole_RequestParameters."""
    parameters = {
        "RoleArn": str(request.arn),
        "RoleSessionName": request.session_name,
        "DurationSeconds": request.duration,
        "ExternalId": request.external_id,
        "SourceIdentity": request.source_identity,
        "PolicyArns": [{"arn": arn} for arn in request.policy_arns],
        "Tags": [{"Key": key, "Value": value} for key, value in request.tags],
        "TransitiveTagKeys": list(request.transitive_tag_keys),
    }
    return {name: value for name, value in parameters.items() if value}


def credentials(answer: dict[str, Any], asked: float) -> Credentials:
    """What STS answered; raises where a field is missing or of the wrong shape.

    `issued` is by AWS's clock if its answer shows that: then the life of a session does not depend on ours.
    """
    given = answer["Credentials"]
    key, secret, token = texts = [given[name] for name in ("AccessKeyId", "SecretAccessKey", "SessionToken")]
    if not all(isinstance(text, str) and 0 < len(text) <= _LONGEST for text in texts):
        raise ValueError("an empty field, or one that is no key or token")
    expiration = given["Expiration"]
    expiration = expiration if expiration.tzinfo else expiration.replace(tzinfo=UTC)
    issued = _date(answer["ResponseMetadata"]["HTTPHeaders"].get("date", ""), asked)
    return Credentials(key, secret, token, expiration=int(expiration.timestamp()), issued=int(issued))


def _date(header: str, asked: float) -> float:
    try:
        theirs = parsedate_to_datetime(header).timestamp()
    except ValueError:
        return asked
    return theirs if abs(theirs - asked) < _SKEW else asked


def fault_of(error: Exception, endpoint: str) -> Fault:
    """What an exception of the SDK means. Its text is logged only where STS refuses the request: no secret is in it."""
    response = getattr(error, "response", None)
    if not isinstance(response, dict):
        cause = getattr(error, "kwargs", {}).get("error")
        log.debug("call to STS failed", extra={"sts.error": type(cause or error).__name__})
        return fault(_name(error, cause), detail=endpoint)
    said = response.get("Error", {})
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    known = fault(str(said.get("Code", "")), status=status, message=str(said.get("Message", "")))
    if known.kind is Kind.REFUSED:
        log.debug("STS refuses the request", extra={"sts.message": str(said.get("Message", ""))[:1000]})
    return known


def _name(error: Exception, cause: object) -> str:
    if type(cause).__name__ == "NameResolutionError":
        return "NameResolutionError"
    if isinstance(error, LookupError | ValueError | TypeError | AttributeError):
        return "MalformedResponse"  # the SDK stumbled over what it tried to read
    return type(error).__name__


def fault_of_chain(error: Exception) -> Fault:
    """What an exception means that the SDK raises where it looks for the agent's own credentials.

    Its text is never shown: it may hold what a program printed.
    """
    response = getattr(error, "response", None)
    said = response.get("Error", {}) if isinstance(response, dict) else {}
    code = said.get("Code") or type(error).__name__
    where = getattr(error, "filename", None) or getattr(error, "kwargs", {}).get("provider", "")
    known = fault(code, detail=where)
    if known.kind is Kind.NODE:
        return known
    return fault("CredentialRetrievalError", detail=f"{code}, {where}" if where else code)


def host(endpoint: str) -> str:
    """The endpoint as it may be shown: a URL may hold a password."""
    return urlsplit(endpoint).hostname or ""

"""Says who it is for each line of its input: "new" by a new default chain, "again" by the same one, told to renew."""

# ruff: noqa: T201  # what it prints is what it is for

import sys
from datetime import UTC, datetime

import boto3
from botocore.exceptions import BotoCoreError, ClientError

session = boto3.Session()
print("ready", flush=True)
for line in sys.stdin:
    try:
        if line.strip() == "new":
            session = boto3.Session()
        else:
            # What time does by itself: keys whose end has come are renewed before they sign anything again.
            session.get_credentials()._expiry_time = datetime.now(UTC)
        print("ok", session.client("sts").get_caller_identity()["Arn"], flush=True)
    except (BotoCoreError, ClientError) as error:
        print("no", " ".join(str(error).split()), flush=True)

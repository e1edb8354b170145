"""What each pod of the demo runs: ten lines of ordinary boto3, unaware of any agent. Prints one JSON object.

Run as a file of its own inside a pod's network namespace, never imported by the agent.
"""

import json
import sys
import time

import boto3
from botocore.exceptions import BotoCoreError, ClientError


def main(bucket: str, key: str, text: str) -> dict[str, object]:
    """Say who I am and, with a bucket, write an object and read it back."""
    session = boto3.Session()
    start = time.perf_counter()
    credentials = session.get_credentials()
    told: dict[str, object] = {"milliseconds": (time.perf_counter() - start) * 1000}
    if credentials is None:
        return told | {"error": "Unable to locate credentials"}
    try:
        told |= {"source": credentials.method, "identity": session.client("sts").get_caller_identity()["Arn"]}
        if bucket:
            s3 = session.client("s3")
            s3.put_object(Bucket=bucket, Key=key, Body=text.encode())
            told["object"] = s3.get_object(Bucket=bucket, Key=key)["Body"].read().decode()
    except (BotoCoreError, ClientError) as error:
        told["error"] = str(error)
    return told


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(*sys.argv[1:])))

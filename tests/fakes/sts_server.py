"""STS over HTTP as a test scripts it: a delay, a fault, and what was asked."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs

from aiohttp import web
from aiohttp.test_utils import TestServer

_ANSWER = """<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult>
<AssumedRoleUser><AssumedRoleId>AROA:x</AssumedRoleId><Arn>{arn}</Arn></AssumedRoleUser><Credentials>
<AccessKeyId>ASIA{number:016}</AccessKeyId><SecretAccessKey>secret-{number}</SecretAccessKey>
<SessionToken>session-{number}{padding}</SessionToken><Expiration>{expiration}</Expiration></Credentials>
</AssumeRoleResult></AssumeRoleResponse>"""
_CALLER = """<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult>
<Arn>{arn}</Arn><UserId>x</UserId><Account>x</Account></GetCallerIdentityResult></GetCallerIdentityResponse>"""
_ERROR = "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>no</Message></Error></ErrorResponse>"


@dataclass(slots=True)
class StsServer:
    """What STS does next. Change the fields while it runs."""

    delay: float = 0.0
    fault: tuple[int, str] | None = None
    """HTTP status and AWS error code of every answer."""
    padding: str = ""
    """Makes session tokens as long as AWS's."""
    node: str = "arn:aws:sts::777777777777:assumed-role/agents/i-0abc"
    """Who signs with keys that were not given out here."""
    url: str = ""
    asked: list[dict[str, str]] = field(default_factory=list)
    """The parameters of every call, in order."""

    async def answer(self, request: web.Request) -> web.Response:
        """One call."""
        fields = {name: values[0] for name, values in parse_qs(await request.text()).items()}
        self.asked.append(fields)
        number = len(self.asked)
        await asyncio.sleep(self.delay)
        if self.fault is not None:
            status, code = self.fault
            return web.Response(status=status, text=_ERROR.format(code=code), content_type="text/xml")
        if fields.get("Action") == "GetCallerIdentity":
            given = re.search(r"Credential=ASIA(\d{16})/", request.headers.get("Authorization", ""))
            arn = f"{self.asked[int(given[1]) - 1]['RoleArn'].replace(':role/', ':assumed-role/')}/x" if given else None
            return web.Response(text=_CALLER.format(arn=arn or self.node), content_type="text/xml")
        end = datetime.now(UTC) + timedelta(seconds=int(fields.get("DurationSeconds", "3600")))
        text = _ANSWER.format(
            arn=fields["RoleArn"], number=number, padding=self.padding, expiration=f"{end:%Y-%m-%dT%H:%M:%SZ}"
        )
        return web.Response(text=text, content_type="text/xml")


@asynccontextmanager
async def sts_server() -> AsyncIterator[StsServer]:
    """STS, listening on a free port of 127.0.0.1."""
    sts = StsServer()
    app = web.Application()
    app.router.add_post("/", sts.answer)
    server = TestServer(app, host="127.0.0.1")
    await server.start_server(shutdown_timeout=0.1)
    sts.url = str(server.make_url("/"))
    try:
        yield sts
    finally:
        await server.close()

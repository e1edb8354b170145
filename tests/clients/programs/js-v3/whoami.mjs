// Says who it is for each line of its input: "new" by a new default chain, "again" by the same one, told to renew.
import { createInterface } from "node:readline";
import { GetCallerIdentityCommand, STSClient } from "@aws-sdk/client-sts";

let client;
console.log("ready");
for await (const line of createInterface({ input: process.stdin })) {
  try {
    if (line === "new") client = new STSClient();
    else await client.config.credentials({ forceRefresh: true });
    console.log("ok", (await client.send(new GetCallerIdentityCommand())).Arn);
  } catch (error) {
    console.log("no", String(error.message || error).replaceAll(/\s+/g, " "));
  }
}

// Says who it is for each line of its input: "new" by a new default chain, "again" by the same one, told to renew.
const AWS = require("aws-sdk");

async function main() {
  let sts;
  console.log("ready");
  for await (const line of require("node:readline").createInterface({ input: process.stdin })) {
    try {
      if (line === "new") {
        const credentials = await new AWS.CredentialProviderChain().resolvePromise();
        sts = new AWS.STS({ endpoint: process.env.AWS_ENDPOINT_URL, credentials });
      } else await sts.config.credentials.refreshPromise();
      console.log("ok", (await sts.getCallerIdentity().promise()).Arn);
    } catch (error) {
      console.log("no", String(error.message || error).replaceAll(/\s+/g, " "));
    }
  }
}

main();

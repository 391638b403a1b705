// A call of each URL with each of Node's own clients; one line of JSON per call.
// Run by the doctor with `node -e`. Arguments: seconds per call, URLs.
"use strict";

const MOST = 4096;
const [seconds, ...urls] = process.argv.slice(1);
const timeout = Number(seconds) * 1000;

async function withFetch(url) {
  const answer = await fetch(url, { redirect: "manual", signal: AbortSignal.timeout(timeout) });
  return {
    status: answer.status,
    content_type: answer.headers.get("content-type") ?? "",
    via: answer.headers.get("via") ?? "",
    body: (await answer.text()).slice(0, MOST),
  };
}

function withModule(url) {
  const client = url.startsWith("https:") ? require("https") : require("http");
  return new Promise((resolve, reject) => {
    const request = client.get(url, { timeout }, (answer) => {
      let body = "";
      answer.setEncoding("utf8");
      answer.on("data", (text) => { if (body.length < MOST) body += text; });
      answer.on("error", reject);
      answer.on("end", () => resolve({
        status: answer.statusCode,
        content_type: answer.headers["content-type"] ?? "",
        via: answer.headers.via ?? "",
        body: body.slice(0, MOST),
      }));
    });
    request.on("timeout", () => request.destroy(new Error("timed out")));
    request.on("error", reject);
  });
}

// fetch() hides the reason: what went wrong is in the cause, sometimes a few causes deep.
function words(error) {
  const said = [];
  for (let at = error; at && said.length < 5; at = at.cause ?? at.errors?.[0]) {
    said.push([at.name, at.code, at.message].filter(Boolean).join(" "));
  }
  return said.join(": ");
}

async function main() {
  const clients = typeof fetch === "function" ? { fetch: withFetch, https: withModule }
                                              : { https: withModule };
  for (const [client, call] of Object.entries(clients)) {
    for (const url of urls) {
      let seen;
      try {
        seen = await call(url);
      } catch (error) {
        seen = { error: words(error) };
      }
      console.log(JSON.stringify({ client, url, ...seen }));
    }
  }
}

main();

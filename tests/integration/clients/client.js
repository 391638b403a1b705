// Makes calls with fetch and undici's agents: `node client.js`, the calls as JSON on standard input.
// One line of JSON per answer. See test_clients_matrix.py for what is in a call.
"use strict";

const { Agent, EnvHttpProxyAgent, FormData, fetch } = require("undici");

async function* pieces(call) {
  for (const piece of call.chunks) yield Buffer.from(piece);
}

function content(call) {
  if ("json" in call) {
    return { body: JSON.stringify(call.json), headers: { "content-type": "application/json" } };
  }
  if ("form" in call) return { body: new URLSearchParams(call.form) };
  if ("multipart" in call) {
    const form = new FormData();
    for (const part of call.multipart) {
      form.append(part.name, new Blob([part.content], { type: part.type }), part.filename);
    }
    return { body: form };
  }
  if ("chunks" in call) return { body: pieces(call), duplex: "half" };
  return "body" in call ? { body: call.body } : {};
}

async function main() {
  const given = JSON.parse(require("fs").readFileSync(0, "utf8"));
  let dispatcher = new EnvHttpProxyAgent();
  if (given.socket) dispatcher = new Agent({ connect: { socketPath: given.socket } });
  for (const call of given.calls) {
    const { headers, ...more } = content(call);
    const got = await fetch(call.url, {
      method: call.method,
      headers: { ...headers, ...call.headers },
      redirect: "manual",
      dispatcher,
      ...more,
    });
    const body = Buffer.from(await got.arrayBuffer()).toString("base64");
    const seen = { name: call.name, status: got.status, headers: [...got.headers], body };
    console.log(JSON.stringify(seen));
  }
  await dispatcher.close();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});

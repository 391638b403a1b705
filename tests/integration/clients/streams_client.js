// A WebSocket of undici's, as streams_client.py has others: what to do as JSON on standard input, what
// came as JSON on standard output.
"use strict";

const { Agent, EnvHttpProxyAgent, WebSocket } = require("undici");

const given = JSON.parse(require("fs").readFileSync(0, "utf8"));
const dispatcher = given.socket
  ? new Agent({ connect: { socketPath: given.socket } })
  : new EnvHttpProxyAgent();
const socket = new WebSocket(given.url, {
  protocols: ["echo.v1", "other"],
  headers: { cookie: "mine=1" },
  dispatcher,
});
socket.binaryType = "arraybuffer";
const got = [];
let next = 0;

socket.addEventListener("message", ({ data }) => {
  if (got.length === 0) got.push(JSON.parse(data));
  else got.push(typeof data === "string" ? data : { binary: Buffer.from(data).toString("base64") });
  const message = given.messages[next++];
  if (message === undefined) return;
  socket.send(typeof message === "string" ? message : Buffer.from(message.binary, "base64"));
});
socket.addEventListener("close", ({ code, reason }) => {
  const seen = JSON.stringify({ got, closed: [code, reason] });
  process.stdout.write(`${seen}\n`, () => process.exit(0));
});
socket.addEventListener("error", (event) => {
  console.error(event.message, event.error);
  process.exit(1);
});
setTimeout(() => {
  console.error("no close in time");
  process.exit(1);
}, 30000);

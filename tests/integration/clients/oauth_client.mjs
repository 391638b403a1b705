// An OAuth client that knows the issuer's URL, its own key, and the RFCs: oauth4webapi, by its public
// API alone. `node oauth_client.mjs`, with what it may know as JSON on standard input; what it got as
// JSON on standard output. See test_broker_oauth4webapi.py.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const given = JSON.parse(readFileSync(0, "utf8"));
const installed = createRequire(pathToFileURL(given.node_modules + "/"));
const oauth = await import(pathToFileURL(installed.resolve("oauth4webapi")).href);

const EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange";
const JWT = "urn:ietf:params:oauth:token-type:jwt";
const http = { [oauth.allowInsecureRequests]: true }; // loopback in this test; https elsewhere

const issuer = new URL(given.issuer);
const as = await oauth.processDiscoveryResponse(
  issuer,
  await oauth.discoveryRequest(issuer, { algorithm: "oauth2", ...http }),
);
const client = { client_id: given.client_id };
const algorithm = { name: "ECDSA", namedCurve: "P-256" };
const key = await crypto.subtle.importKey("jwk", given.key, algorithm, false, ["sign"]);
const authentication = oauth.PrivateKeyJwt({ key, kid: given.kid });

// A token of its own as subject: what any JWT library makes.
async function ownToken() {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const now = Math.floor(Date.now() / 1000);
  const claims = { iss: given.client_id, sub: given.client_id, aud: given.issuer, iat: now };
  const input = `${part({ alg: "ES256", kid: given.kid })}.${part({ ...claims, exp: now + 60, jti: crypto.randomUUID() })}`;
  const signed = await crypto.subtle.sign(
    { name: "ECDSA", hash: "SHA-256" }, key, Buffer.from(input));
  return `${input}.${Buffer.from(signed).toString("base64url")}`;
}

// As the library's documentation has it: once more where the server asks for its nonce.
async function withNonce(work) {
  try {
    return await work();
  } catch (error) {
    if (!oauth.isDPoPNonceError(error)) throw error;
    got.nonces += 1;
    return work();
  }
}

async function exchange(parameters, DPoP) {
  const options = { DPoP, ...http };
  return withNonce(async () => {
    const subject = { subject_token: await ownToken(), subject_token_type: JWT };
    const response = await oauth.genericTokenEndpointRequest(
      as, client, authentication, EXCHANGE, { ...subject, ...parameters }, options);
    return oauth.processGenericTokenEndpointResponse(as, client, response);
  });
}

async function introspect(token) {
  const response = await oauth.introspectionRequest(as, client, authentication, token, http);
  return oauth.processIntrospectionResponse(as, client, response);
}

const got = { nonces: 0, refused: [] };
got.bearer = await exchange({ audience: given.bearer.audience, scope: given.bearer.scope });

const DPoP = oauth.DPoP(client, await oauth.generateKeyPair("ES256"));
got.bound = await exchange({ audience: given.bound.audience, scope: given.bound.scope }, DPoP);
got.thumbprint = await DPoP.calculateThumbprint();

const answer = await withNonce(() =>
  oauth.protectedResourceRequest(
    got.bound.access_token, "GET", new URL(given.resource), undefined, null, { DPoP, ...http }));
got.resource = { status: answer.status, body: await answer.json() };

for (const parameters of given.refused) {
  try {
    await exchange(parameters);
    got.refused.push("issued");
  } catch (error) {
    if (!(error instanceof oauth.ResponseBodyError)) throw error;
    got.refused.push(error.error);
  }
}

got.before = await introspect(got.bearer.access_token);
await oauth.processRevocationResponse(
  await oauth.revocationRequest(as, client, authentication, got.bearer.access_token, http));
got.after = await introspect(got.bearer.access_token);
process.stdout.write(JSON.stringify(got));

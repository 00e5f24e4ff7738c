// Client of the service in JavaScript: InfoBatch over HTTP and JSON, with nothing but fetch.
//   node examples/service_client.mjs http://127.0.0.1:8765 [TOKEN]
// Every request names its step, so each may be sent again: after a lost answer, a restart, a 503.

const [url = "http://127.0.0.1:8765", token] = process.argv.slice(2);
const PATIENCE = 120_000;
const AGAIN = new Set(["missing-reports", "busy", "store-unavailable", "session-changed", "timeout"]);

class ServiceError extends Error {
  constructor(problem) {
    super(problem.detail);
    this.kind = problem.type.replace("urn:curation:problem:", "");
  }
}

async function call(method, path, body) {
  const headers = { "Content-Type": "application/json", ...(token && { Authorization: `Bearer ${token}` }) };
  const end = Date.now() + PATIENCE;
  for (let pause = 50; ; pause = Math.min(2 * pause, 5000)) {
    let wait = Math.random() * pause;
    try {
      const answer = await fetch(url + path, { method, headers, body: body && JSON.stringify(body) });
      if (answer.ok) return answer.status === 204 ? null : await answer.json();
      const error = new ServiceError(await answer.json());
      if (!AGAIN.has(error.kind) || Date.now() > end) throw error;
      wait = Math.max(wait, 1000 * Number(answer.headers.get("retry-after") ?? 0));
    } catch (error) {
      if (!(error instanceof TypeError) || Date.now() > end) throw error; // TypeError: no answer came
    }
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}

const { methods } = await call("GET", "/v1/capabilities");
if (!("infobatch" in methods)) throw new Error(`this server has only ${Object.keys(methods)}`);

const id = `js-${Date.now()}`;
const spec = { id, method: "infobatch", size: 1000, batch_size: 100, epochs: 3, seed: 1, parameters: { delta: 1.0 } };
await call("POST", "/v1/sessions", spec);

// The "model" learns an example each time it sees it: its loss halves.
const losses = new Float32Array(spec.size).fill(1).map((_, row) => 1 + row / spec.size);
const rows = Array(spec.epochs).fill(0);
let reports = [];
for (let step = 0, last = false; !last; step++) {
  const batch = await call("POST", `/v1/sessions/${id}/steps`, { step, reports });
  const measured = batch.indices.map((row) => losses[row]);
  batch.indices.forEach((row) => (losses[row] /= 2));
  rows[batch.epoch] += batch.indices.length;
  reports = [{ step, losses: measured }];
  last = batch.end_of_session;
}
await call("POST", `/v1/sessions/${id}/steps`, { reports });
await call("DELETE", `/v1/sessions/${id}`);
console.log(`rows trained on in each epoch: ${rows.join(" ")}`);

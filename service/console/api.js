// The service over HTTP: requests with the API key, problems as errors, and a job's events.

const STORED = "qd-key";
const FINAL = ["done", "failed", "cancelled"];
const MOST_PAUSE_SECONDS = 15;

export const isFinal = (job) => FINAL.includes(job.status);

/** An answer other than the one asked for: a problem document (RFC 9457), or what stands for one. */
export class Problem extends Error {
  constructor(status, document, retryAt = null) {
    super(document.title ?? `HTTP ${status}`);
    this.status = status;
    this.document = document;
    this.retryAt = retryAt;
  }

  static async of(response) {
    const document = await response.json().catch(() => null);
    const said = document && typeof document === "object" ? document : {};
    const other = { title: `The answer is HTTP ${response.status}`, detail: "It does not say why." };
    return new Problem(response.status, said.title ? said : other, retryTime(response.headers.get("Retry-After")));
  }
}

export const key = {
  get: () => sessionStorage.getItem(STORED) ?? "",
  set: (value) => (value ? sessionStorage.setItem(STORED, value) : sessionStorage.removeItem(STORED)),
};

/**
 * The response to a request.
 * Where a key is missing or wrong, "key-needed" is dispatched too, unless the request is a quiet one.
 */
export async function open(path, { method = "GET", body, headers = {}, signal, quiet = false } = {}) {
  const sent = { ...headers };
  if (key.get()) sent.Authorization = `Bearer ${key.get()}`;
  if (body !== undefined) sent["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers: sent, signal, body: body && JSON.stringify(body) });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Problem(0, { title: "The service does not answer", detail: "It is down, or the network is." });
  }
  if (response.ok) return response;
  const problem = await Problem.of(response);
  if (problem.status === 401 && !quiet) document.dispatchEvent(new CustomEvent("key-needed", { detail: problem }));
  throw problem;
}

/** The JSON of the answer. */
export async function get(path, options = {}) {
  return (await open(path, options)).json();
}

/**
 * Follow a job to its end, over lost connections.
 * @param onJob called with the job after each change
 * @param onLost called with a Problem and when it is tried again
 * @returns the job that has ended
 */
export async function follow(id, { signal, onJob, onLost }) {
  let last = "";
  for (let failures = 1; ; failures += 1) {
    let problem = new Problem(0, { title: "The connection was lost", detail: "The job goes on without it." });
    try {
      const headers = { Accept: "text/event-stream", ...(last && { "Last-Event-ID": last }) };
      const response = await open(`/jobs/${encodeURIComponent(id)}/events`, { signal, headers });
      for await (const event of events(response.body)) {
        failures = 0;
        last = event.id || last;
        const job = JSON.parse(event.data);
        onJob(job);
        if (isFinal(job)) return job;
      }
    } catch (error) {
      if (signal.aborted) throw error;
      const isRefused = error instanceof Problem && error.status >= 400 && error.status < 500 && error.status !== 429;
      if (isRefused) throw error;
      if (error instanceof Problem) problem = error;
    }
    const backoff = Math.min(2 ** Math.max(failures - 1, 0), MOST_PAUSE_SECONDS) * 1e3;
    const until = Math.max(Date.now() + backoff, problem.retryAt ?? 0);
    onLost(problem, new Date(until).toISOString());
    await pause(until - Date.now(), signal);
  }
}

export function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}

// EventSource cannot send an Authorization header.
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let event = { data: "", id: "" };
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      const [name, ...parts] = line.split(":");
      const said = parts.join(":").replace(/^ /, "");
      if (name === "data" && line) event.data += said;
      if (name === "id" && line) event.id = said;
      if (!line) {
        if (event.data) yield event;
        event = { data: "", id: "" };
      }
    }
  }
}

/** Milliseconds since the epoch of a Retry-After header, which holds seconds or a date; null without one. */
function retryTime(header) {
  if (!header) return null;
  const at = /^\d+$/.test(header) ? Date.now() + header * 1e3 : Date.parse(header);
  return Number.isNaN(at) ? null : at;
}

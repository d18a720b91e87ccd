// @ts-check
// What the server says: one event stream for what happens now, requests for what is summed.

export class Refused extends Error {
  /** @param {number} status @param {string} detail */
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

/** @param {string} path @returns {Promise<any>} */
export async function get(path) {
  return answer(await fetch(path, { signal: AbortSignal.timeout(8000) }));
}

/** A file goes as what it is, anything else as JSON. @param {string} path @param {object | Blob} body @returns {Promise<any>} */
export async function post(path, body) {
  if (body instanceof Blob) return answer(await fetch(path, { method: "POST", body }));
  const headers = { "Content-Type": "application/json" };
  return answer(await fetch(path, { method: "POST", headers, body: JSON.stringify(body) }));
}

/** @param {string} path @param {Blob} content @returns {Promise<any>} */
export async function put(path, content) {
  return answer(await fetch(path, { method: "PUT", body: content }));
}

/** @param {Response} response */
async function answer(response) {
  if (response.status === 204) return null;
  const body = await response.json().catch(() => ({ detail: response.statusText }));
  if (!response.ok) throw new Refused(response.status, body.detail);
  return body;
}

/**
 * The event stream, opened again whenever it ends. The browser itself retries a
 * dropped connection, but gives up for good on an error answer; so do not leave it to that.
 */
export class Feed {
  /** @param {{live: (body: any) => void, alerts: (body: any) => void, snapshot: (body: any, boot: string) => void,
   *   open: () => void, lost: () => void}} to */
  constructor(to) {
    this.to = to;
    /** @type {EventSource | null} */
    this.source = null;
    this.timer = 0;
  }

  open() {
    this.source?.close();
    const source = new EventSource("/v1/stream?topic=live&topic=alerts");
    this.source = source;
    source.onopen = () => this.to.open();
    source.onerror = () => {
      this.to.lost();
      if (source.readyState === EventSource.CLOSED) this.retry();
    };
    source.addEventListener("snapshot", (event) => {
      this.to.snapshot(JSON.parse(event.data), event.lastEventId.replace(/-\d+$/, ""));
    });
    source.addEventListener("live", (event) => this.to.live(JSON.parse(event.data)));
    source.addEventListener("alerts", (event) => this.to.alerts(JSON.parse(event.data)));
  }

  retry() {
    clearTimeout(this.timer);
    this.timer = window.setTimeout(() => this.open(), 2000);
  }

  /** Whether events can come now. */
  get isOpen() {
    return this.source?.readyState === EventSource.OPEN;
  }
}

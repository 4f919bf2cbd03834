// Requests as they happen. Watching makes every proxy send more, so it goes on
// only while this page is open and not paused.

import { html, useEffect, useLayoutEffect, useRef, useState } from "../html.js";
import * as format from "../format.js";
import { choose, go, to, toEdge, toService } from "../route.js";
import { useHidden } from "../stream.js";
import { Empty, Security } from "../parts/basics.js";

const most = 50; // rows that are kept
const perSecond = 25; // events asked for; the rest is counted
const drawEvery = 1000; // ms at most; the first requests after a while are drawn
const soon = 50;

const fields = ["service", "client", "method", "path", "status", "min_ms"];
const statuses = { "": "any", "2xx": "2xx", "3xx": "3xx", "4xx": "4xx", "5xx": "5xx", failed: "failed" };
const methods = ["", "GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"];

export function Live({ table, query }) {
  const filter = Object.fromEntries(fields.filter((f) => query[f]).map((f) => [f, query[f]]));
  const [paused, setPaused] = useState(false);
  return html`<div class="title">
      <h1>Live</h1>
      <p>requests as they happen, from every proxy</p>
      <button id="pause" class=${paused ? "primary" : ""} onClick=${() => setPaused(!paused)} aria-pressed=${paused}>
        ${paused ? "Resume" : "Pause"}
      </button>
    </div>
    <${Filters} filter=${filter} services=${table.services} />
    <${Command} filter=${filter} />
    <${Events} filter=${filter} paused=${paused} />`;
}

// Events is what is drawn anew as requests come, and nothing else is.
function Events({ filter, paused }) {
  const hidden = useHidden(); // a browser has few connections to one place
  const tap = useTap(filter, paused || hidden);
  return html`<p class="tally">${tallyOf(tap, paused)}</p>
    ${tap.error && html`<p class="notice" role="alert">${tap.error}</p>`}
    ${
      tap.rows.length
        ? html`<${Requests} rows=${tap.rows} />`
        : html`<${Empty}
            type=${Object.keys(filter).length ? null : "sudo tulle run --rm client -- curl -s http://web.mesh:8080/"}
          >
            ${Object.keys(filter).length ? html`Nothing that fits has happened since you look. <a href=${to("live")}>Without the filter</a>` : "Nothing has happened since you look. Make some traffic:"}
          <//>`
    }`;
}

const tallyOf = (tap, paused) =>
  `${paused ? "Paused; the proxies send nothing. " : ""}${format.plain(format.count(tap.seen))} shown${tap.dropped ? `; ${format.plain(format.count(tap.dropped))} more were not, since at most ${perSecond} a second are asked for` : ""}`;

// useTap collects events; those that come together are drawn together.
function useTap(filter, paused) {
  const [state, set] = useState({ rows: [], seen: 0, dropped: 0, error: "" });
  const number = useRef(0);
  const question = `/api/v1/tap?${new URLSearchParams({ ...filter, max: perSecond, together_ms: drawEvery })}`;
  useEffect(() => set({ rows: [], seen: 0, dropped: 0, error: "" }), [question]);
  // A layout effect, so that nothing comes once the button says that it is paused.
  useLayoutEffect(() => {
    if (paused) return;
    let fresh = [];
    let error = "";
    let timer = 0;
    let ended = false;
    let drawn = -drawEvery;
    const draw = () => {
      const [events, trouble] = [fresh, error];
      [fresh, error, timer, drawn] = [[], "", 0, performance.now()];
      set((old) => ({
        rows: [...events, ...old.rows].slice(0, most),
        seen: old.seen + events.length,
        dropped: old.dropped + events.reduce((n, e) => n + e.dropped, 0),
        error: trouble,
      }));
    };
    const drawSoon = () => (timer ||= setTimeout(draw, Math.max(soon, drawn + drawEvery - performance.now())));
    const source = new EventSource(question);
    source.onmessage = (message) => {
      const event = JSON.parse(message.data);
      fresh.unshift({ dropped: event.dropped ?? 0, row: rowOf(event, number.current++) });
      drawSoon();
    };
    source.onerror = async () => {
      if (source.readyState !== EventSource.CLOSED) return;
      error = await reason(question);
      if (!ended) drawSoon();
    };
    return () => {
      ended = true;
      source.close();
      clearTimeout(timer);
    };
  }, [question, paused]);
  return state;
}

// reason asks once more in a way that tells why a stream was refused.
async function reason(question) {
  const abort = new AbortController();
  try {
    const response = await fetch(question, { signal: abort.signal });
    return response.ok ? "The stream broke off; resume to go on." : (await response.json()).error;
  } catch {
    return "The control plane does not answer; sudo tulle check says why.";
  } finally {
    abort.abort();
  }
}

const same = (a, b) => fields.every((f) => (a[f] ?? "") === (b[f] ?? ""));

function Filters({ filter, services }) {
  // What is being typed, until it becomes part of the address.
  const [draft, setDraft] = useState(filter);
  const told = useRef(filter);
  const timer = useRef(0);
  if (!same(told.current, filter)) {
    told.current = filter;
    setDraft(filter);
  }
  const change = (event) => {
    const form = event.currentTarget;
    const typed = Object.fromEntries(new FormData(form));
    setDraft(typed);
    clearTimeout(timer.current);
    timer.current = setTimeout(() => {
      if (!form.reportValidity()) return;
      told.current = typed;
      go(choose(typed), { replace: true });
    }, 250);
  };
  const field = (name, word, more) =>
    html`<label
      >${word} <input name=${name} value=${draft[name] ?? ""} autocomplete="off" spellcheck=${false} ...${more}
    /></label>`;
  const choice = (name, word, options) =>
    html`<label
      >${word}
      <select name=${name}>
        ${options.map(([value, text]) => html`<option key=${value} value=${value} selected=${value === (draft[name] ?? "")}>${text}</option>`)}
      </select></label
    >`;
  return html`<form
    class="controls"
    onInput=${change}
    onSubmit=${(event) => event.preventDefault()}
    aria-label="Filter"
  >
    ${field("service", "Service", { list: "known", placeholder: "any", size: 12 })}
    ${field("client", "Caller", { list: "known", placeholder: "any", size: 12 })}
    ${choice(
      "method",
      "Method",
      methods.map((m) => [m, m || "any"]),
    )}
    ${field("path", "Path from", { placeholder: "/", size: 14 })}
    ${choice("status", "Status", Object.entries(statuses))}
    ${field("min_ms", "Slower than (ms)", { inputmode: "decimal", pattern: "[0-9]+([.][0-9]+)?", placeholder: "0", size: 4, title: "milliseconds, for instance 20" })}
    <datalist id="known">${services.map((s) => html`<option key=${s.name} value=${s.name} />`)}</datalist>
    ${Object.keys(filter).length > 0 && html`<a href=${to("live")}>Clear</a>`}
  </form>`;
}

const flags = { client: "--client", method: "--method", path: "--path", status: "--status" };

// commandOf is what shows the same in a terminal.
export function commandOf(filter) {
  const words = ["tulle", "tap"];
  if (filter.service) words.push(filter.service);
  for (const [field, flag] of Object.entries(flags)) if (filter[field]) words.push(flag, filter[field]);
  if (filter.min_ms) words.push("--slower-than", `${filter.min_ms}ms`);
  return words.map(quoted).join(" ");
}

const quoted = (word) => (/^[\w./:@%+=,-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);

function Command({ filter }) {
  const [copied, setCopied] = useState(false);
  const command = commandOf(filter);
  const copy = async () => {
    await navigator.clipboard.writeText(command);
    setCopied(true);
    setTimeout(() => setCopied(false), 1500);
  };
  return html`<p class="command">
    <span class="quiet">In a terminal:</span> <code id="command">${command}</code>
    <button type="button" onClick=${copy}>${copied ? "Copied" : "Copy"}</button>
  </p>`;
}

const Requests = ({ rows }) =>
  html`<div class="scroll" tabindex="0" role="region" aria-label="Requests">
    <table class="tap">
      <thead>
        <tr>
          <th scope="col">Time</th>
          <th scope="col" class="mid">From</th>
          <th scope="col">To</th>
          <th scope="col" class="mid">Security</th>
          <th scope="col">Request</th>
          <th scope="col" class="number">Result</th>
          <th scope="col" class="number">Took</th>
          <th scope="col" class="number low">Received</th>
        </tr>
      </thead>
      <tbody>
        ${rows.map((e) => e.row)}
      </tbody>
    </table>
  </div>`;

// rowOf makes a request's row once: a row that stays the same is not drawn again.
// It has as few parts as it can, since there are many.
function rowOf(e, key) {
  const fine = e.outcome === "success";
  const request = e.method ? `${e.method} ${e.path ?? ""}` : e.protocol;
  const result = fine || e.outcome === "app-failure" ? (e.status ?? "ok") : e.outcome;
  return html`<tr key=${key}>
    <td class="quiet clock">${format.clock(e.time, "milliseconds")}</td>
    <td class="mid">
      <a href=${toEdge({ source: e.source, destination: e.service })}>${e.source_workload || e.source}</a>
    </td>
    <td><a href=${toService(e.service, { replica: e.workload })}>${e.workload || e.service}</a></td>
    <td class="mid">${e.security === "mtls" ? "mTLS" : html`<${Security} kind=${e.security} />`}</td>
    <td class="path" title=${request}>${request}</td>
    <td class=${`number ${fine ? "" : "bad"}`}>${result}</td>
    <td class="number">${format.plain(format.latency(e.duration_s))}</td>
    <td class="number low quiet">${format.plain(format.bytes(e.bytes_received))}</td>
  </tr>`;
}

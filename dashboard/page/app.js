// The page: one event stream brings the whole table each second.

import { $, Table, quantity, text } from "./dom.js";
import * as columns from "./columns.js";
import * as format from "./format.js";
import { startTap } from "./tap.js";

const staleAfter = 4000; // ms without news
const retryAfter = 2000;

const tables = {
  services: new Table("services", "Services", columns.services, (r) => r.name),
  edges: new Table("edges", "Who calls whom", columns.edges, (r) => [r.source, r.source_identity, r.service, r.service_kind, r.security, r.protocol].join("\n")),
  replicas: new Table("replicas", "Replicas", columns.replicas, (r) => `${r.service}\n${r.workload}`),
  proxies: new Table("proxies", "Proxies", columns.proxies, (r) => `${r.identity}\n${r.workload}`),
};

let source = null;
let retry = 0;
let watchdog = 0;

function connect() {
  clearTimeout(retry);
  source?.close();
  const since = document.querySelector("input[name=since]:checked").value;
  source = new EventSource(`/api/v1/stream?since=${since}`);
  source.onmessage = (message) => {
    show(JSON.parse(message.data));
    setState("live", "Live");
    $("notice").hidden = true;
    clearTimeout(watchdog);
    watchdog = setTimeout(() => setState("stale", "No news; waiting…"), staleAfter);
  };
  source.addEventListener("trouble", (message) => {
    $("notice").hidden = false;
    text($("notice"), JSON.parse(message.data).error);
  });
  source.onerror = () => {
    clearTimeout(watchdog);
    setState("lost", "Disconnected; retrying…");
    if (source.readyState === EventSource.CLOSED) retry = setTimeout(connect, retryAfter);
  };
}

function setState(state, words) {
  document.body.dataset.state = state;
  text($("status-text"), words);
}

function show(table) {
  const now = new Date(table.now);
  for (const proxy of table.proxies) proxy.now = now;
  for (const [name, shown] of Object.entries(tables)) shown.show(table[name]);
  showTiles(table);
  text($("domain"), table.about.trust_domain);
  text($("version"), table.about.version ? `Tulle ${table.about.version}` : "");
  text($("updated"), `Updated ${now.toLocaleTimeString("en-GB")}`);
}

function showTiles({ edges, proxies }) {
  const sum = (pick, of = edges) => of.reduce((n, edge) => n + pick(edge), 0);
  const busy = edges.filter((e) => e.requests > 0);
  const open = busy.filter((e) => e.security === "plaintext");
  const requests = sum((e) => e.requests);
  const failures = sum((e) => e.failures);
  const share = (n) => (requests ? n / requests : null);
  const guarded = share(sum((e) => e.requests, edges.filter((e) => e.security === "mtls")));
  const slowest = busy.reduce((a, b) => ((b.p99_us ?? -1) > (a?.p99_us ?? -1) ? b : a), null);
  const connected = proxies.filter((p) => p.state === "connected").length;
  const lost = proxies.filter((p) => p.state === "lost").length;

  tile("rps", format.rate(sum((e) => e.rps)), `${format.count(sum((e) => e.total_requests))} in all`);
  tile("success", format.success(share(requests - failures)), failures ? `${format.count(failures)} failed` : requests ? "none failed" : "");
  tile("mtls", { ...format.percent(guarded), className: guarded < 1 ? "warn" : "ok" }, open.length ? `${open.length} of ${busy.length} edges plaintext` : busy.length ? "every edge" : "");
  tile("slowest", format.latency(slowest?.p99_us), slowest ? `${slowest.source} → ${slowest.service}` : "");
  tile("proxies", { value: format.count(connected), unit: "" }, lost ? `${lost} lost` : connected ? "all connected" : "");
}

function tile(name, figure, note) {
  quantity($(`tile-${name}`), figure);
  text($(`note-${name}`), note);
  $(`note-${name}`).title = note;
}

for (const input of document.querySelectorAll("input[name=since]")) input.addEventListener("change", connect);
startTap();
connect();

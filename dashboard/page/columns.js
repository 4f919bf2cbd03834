// What each table shows, column by column.

import { className, clone, el, quantity, text } from "./dom.js";
import * as format from "./format.js";
import { drawSpark } from "./spark.js";

const figure = (head, pick, more = {}) => ({ head, ...more, className: `num ${more.className ?? ""}`, set: (td, row) => quantity(td, pick(row)) });

const latencies = [
  figure("p50", (r) => format.latency(r.p50_us), { className: "c-p50", title: "half of the requests are faster" }),
  figure("p95", (r) => format.latency(r.p95_us), { className: "c-mid" }),
  figure("p99", (r) => format.latency(r.p99_us), { title: "one in a hundred is slower" }),
];

const rps = figure("Requests", (r) => format.rate(r.rps));
const success = figure("Success", (r) => format.success(r.success));
const failures = figure("Failed", (r) => ({ value: format.count(r.total_failures), unit: "", className: r.total_failures ? "bad" : "quiet" }), { className: "c-low", title: "since the start" });
const total = figure("Total", (r) => ({ value: format.count(r.total_requests), unit: "" }), { className: "c-low", title: "since the start" });

const trend = {
  head: "Last minute",
  className: "num trend c-low",
  set(td, row) {
    if (!td.firstElementChild) td.append(clone("spark"));
    drawSpark(td.firstElementChild, row.history);
  },
};

function name(td, value, foreign) {
  text(td, value);
  td.title = value;
  className(td, foreign ? "name foreign" : "name");
}

const words = { mtls: "mTLS", plaintext: "plaintext", local: "local" };
const explain = {
  mtls: "mutual TLS: encrypted, and both sides proved who they are",
  plaintext: "not protected by the mesh: one side is not part of it",
  local: "never left the workload's own network namespace",
};

export function security(td, kind) {
  if (td.dataset.kind === kind) return;
  td.dataset.kind = kind;
  const badge = el("span", `badge ${kind in words ? kind : "plaintext"}`);
  if (kind !== "local") badge.append(clone(kind === "mtls" ? "lock-mtls" : "lock-plaintext"));
  badge.append(el("span", "word", words[kind] ?? kind));
  badge.title = explain[kind] ?? kind;
  badge.setAttribute("aria-label", badge.title);
  td.replaceChildren(badge);
}

export const services = [
  { head: "Service", className: "name", set: (td, r) => name(td, r.name) },
  { head: "From", className: "quiet c-low", title: "run by tulle, or from the catalog file", set: (td, r) => text(td, r.source || "traffic") },
  {
    head: "Ready",
    className: "num",
    set(td, r) {
      text(td, r.replicas ? `${r.ready}/${r.replicas}` : "–");
      className(td, r.ready < r.replicas ? (r.ready ? "num warn" : "num bad") : "num");
    },
  },
  {
    head: "Mutual TLS",
    className: "num c-mid",
    title: "share of the requests",
    set(td, r) {
      quantity(td, { ...format.percent(r.mtls), className: r.mtls < 1 ? "warn" : "ok" });
    },
  },
  rps, success, ...latencies, total, failures, trend,
];

export const edges = [
  { head: "From", className: "name", set: (td, r) => name(td, r.source, r.source_kind === "address") },
  { head: "To", className: "name", set: (td, r) => name(td, r.service, r.service_kind === "outside") },
  { head: "Security", className: "", set: (td, r) => security(td, r.security) },
  { head: "Protocol", className: "quiet c-low", set: (td, r) => text(td, r.protocol) },
  rps, success, ...latencies, total, failures, trend,
];

export const replicas = [
  {
    head: "Service",
    className: "name c-mid",
    set(td, r, before, row) {
      const again = before?.service === r.service;
      name(td, r.service);
      className(td, again ? "name c-mid again" : "name c-mid");
      row.classList.toggle("first", !again);
    },
  },
  {
    head: "Replica",
    className: "replica",
    set(td, r) {
      text(td, r.workload);
      td.title = [r.workload, r.address, r.ready ? "" : "not ready"].filter(Boolean).join(", ");
      className(td, r.ready ? "replica" : "replica warn");
    },
  },
  { head: "Share", className: "share", set: shareBar },
  rps, success,
  figure("p50", (r) => format.latency(r.p50_us), { className: "c-mid" }),
  figure("p99", (r) => format.latency(r.p99_us), { className: "c-low" }),
  figure("Estimate", (r) => format.latency(r.ewma_us), { className: "c-mid", title: "the latency that its clients' balancers reckon with" }),
  figure("In flight", (r) => ({ value: format.count(r.in_flight), unit: "" }), { className: "c-low" }),
];

function shareBar(td, r) {
  if (!td.firstElementChild) {
    td.append(el("div", "bar", el("div", "track", el("div", "fill"), el("div", "fair")), el("b")));
  }
  const [track, label] = td.firstElementChild.children;
  track.children[0].style.width = `${(r.share ?? 0) * 100}%`;
  track.children[1].style.left = `${r.fair * 100}%`;
  track.children[1].hidden = r.fair === 1;
  quantity(label, format.percent(r.share));
}

export const proxies = [
  { head: "Workload", className: "name", set: (td, r) => name(td, r.workload) },
  { head: "State", className: "", set: (td, r) => { text(td, r.state); className(td, { connected: "ok", ended: "quiet" }[r.state] ?? "warn"); } },
  { head: "Identity", className: "foreign c-mid", set: (td, r) => text(td, r.identity) },
  { head: "Redirect", className: "quiet c-low", set: (td, r) => text(td, r.redirect) },
  { head: "Version", className: "quiet c-low", set: (td, r) => text(td, r.version) },
  figure("Memory", (r) => format.bytes(r.rss_bytes)),
  figure("Connections", (r) => ({ value: format.count(r.open_connections), unit: "" }), { className: "c-mid" }),
  figure("Certificate for", (r) => format.until(r.certificate_expires, r.now)),
  figure("Renewed", (r) => ({ value: format.count(r.certificate_renewals), unit: "" }), { className: "c-low" }),
];

export const taps = [
  { head: "Time", className: "quiet", set: (td, e) => text(td, format.clock(e.time)) },
  { head: "From", className: "", set: (td, e) => text(td, e.source_workload || e.source) },
  { head: "To", className: "", set: (td, e) => text(td, e.workload || e.service) },
  { head: "", className: "", set: (td, e) => security(td, e.security) },
  { head: "Request", className: "path", set: (td, e) => { text(td, e.method ? `${e.method} ${e.path ?? ""}` : e.protocol); td.title = td.textContent; } },
  {
    head: "Result",
    className: "num",
    set(td, e) {
      text(td, e.outcome === "success" || e.outcome === "app-failure" ? String(e.status ?? "ok") : e.outcome);
      className(td, e.outcome === "success" ? "num ok" : "num bad");
    },
  },
  figure("Took", (e) => format.latency(e.duration_us)),
  figure("Bytes", (e) => ({ value: format.count(e.bytes_received), unit: "" }), { className: "c-mid" }),
];

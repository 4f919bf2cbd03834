// Columns that several tables share.

import { html } from "../html.js";
import * as format from "../format.js";
import { to, toEdge, toService } from "../route.js";
import { Figure, Security, Share, Spark } from "./basics.js";

// figure is a column of numbers; each leads to hrefOf(row).
export const figure = (id, head, of, show, hrefOf, more = {}) => ({
  id,
  head,
  by: of,
  ...more,
  kind: `number ${more.kind ?? ""}`,
  cell: (row) => html`<${Figure} of=${show(of(row))} href=${hrefOf?.(row)} />`,
});

const trend = (hrefOf) => ({
  id: "trend",
  head: "Last 5 min",
  kind: "trend low",
  title: "requests per second",
  cell: (row) => html`<a href=${hrefOf(row)} aria-hidden="true" tabindex="-1"><${Spark} values=${row.history} /></a>`,
});

// traffic is what every row of calls has.
export const traffic = (hrefOf) => [
  figure("rps", "Requests", (r) => r.rps, format.rate, hrefOf),
  figure("success", "Success", (r) => r.success, format.success, hrefOf),
  figure("p50", "p50", (r) => r.p50_s, format.latency, hrefOf, {
    kind: "mid",
    title: "half of the requests are faster",
  }),
  figure("p95", "p95", (r) => r.p95_s, format.latency, hrefOf, { kind: "low", title: "one in twenty is slower" }),
  figure("p99", "p99", (r) => r.p99_s, format.latency, hrefOf, { title: "one in a hundred is slower" }),
];

// lengthOf is the class of a name: a long one takes several lines rather than
// lose its end, where replicas differ.
export const lengthOf = (name) => (name.length > 16 ? "long" : null);

const name = (id, head, of, hrefOf) => ({
  id,
  head,
  by: of,
  kind: "name",
  cell: (row) => {
    const href = hrefOf(row);
    return href
      ? html`<a href=${href} class=${lengthOf(of(row))}>${of(row)}</a>`
      : html`<span class=${lengthOf(of(row))}>${of(row)}</span>`;
  },
});

const home = (row) => toService(row.name);

export const services = [
  name("name", "Service", (r) => r.name, home),
  {
    id: "ready",
    head: "Ready",
    kind: "number",
    by: (r) => r.ready - r.replicas,
    title: "replicas that are ready",
    cell: (r) => {
      const tone = r.ready < r.replicas ? (r.ready ? "warn" : "bad") : "";
      return html`<${Figure} of=${{ text: r.replicas ? `${r.ready}/${r.replicas}` : "–", tone }} href=${home(r)} />`;
    },
  },
  ...traffic(home),
  figure(
    "mtls",
    "mTLS",
    (r) => r.mtls,
    (v) => ({ ...format.percent(v), ...(v !== null && v < 1 && { tone: "warn" }) }),
    () => to("map"),
    {
      kind: "mid",
      title: "share of the requests that came over mutual TLS",
    },
  ),
  trend(home),
];

const ends = {
  source: name(
    "source",
    "From",
    (r) => r.source,
    (r) => (r.source_kind === "workload" ? toService(r.source) : ""),
  ),
  destination: name(
    "destination",
    "To",
    (r) => r.destination,
    (r) => (r.destination_kind === "service" ? toService(r.destination) : ""),
  ),
};

export const edgeKey = (e) =>
  [e.source, e.source_identity, e.destination, e.destination_kind, e.security, e.protocol].join("\n");

// edges are columns for calls; of those from or to one service, that end is left out.
export const edges = (...shown) => [
  ...shown.map((end) => ends[end]),
  {
    id: "security",
    head: "Security",
    kind: "security",
    by: (r) => r.security,
    cell: (r) => html`<a class="quietly" href=${toEdge(r)}><${Security} kind=${r.security} /></a>`,
  },
  { id: "protocol", head: "Protocol", kind: "quiet low", by: (r) => r.protocol, cell: (r) => r.protocol },
  ...traffic((r) => toEdge(r)),
  ...(shown.length > 1 ? [trend((r) => toEdge(r))] : []),
];

const replica = (r) => toService(r.service, { replica: r.workload });

export const replicas = [
  {
    ...name("workload", "Replica", (r) => r.workload, replica),
    cell: (r) =>
      html`<a href=${replica(r)} title=${r.address} class=${lengthOf(r.workload)}>${r.workload}</a
        >${!r.ready && html` <span class="badge warn">not ready</span>`}
        ${r.slow && html` <span class="badge warn" title=${r.slow}>slow</span>`}`,
  },
  {
    id: "share",
    head: "Share of requests",
    kind: "wide",
    by: (r) => r.share,
    title: "the mark is an even share",
    cell: (r) => html`<${Share} of=${r.share} fair=${r.fair} label=${format.percent(r.share)} />`,
  },
  figure("ewma", "Estimate", (r) => r.ewma_s, format.latency, null, {
    kind: "mid",
    title: "the latency that its callers' balancers reckon with",
  }),
  figure("inflight", "In flight", (r) => r.in_flight, format.count, null, { kind: "mid" }),
  ...traffic(replica),
];

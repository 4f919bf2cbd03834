// The calls from one caller to one destination.

import { html } from "../html.js";
import * as format from "../format.js";
import { to, toService } from "../route.js";
import { Fact, Figure, Section, Security } from "../parts/basics.js";
import { edgeKey } from "../parts/columns.js";
import { Table } from "../parts/table.js";
import { TimeCharts } from "../parts/time.js";

export function Edge({ table, names: [source, destination], query }) {
  const rows = table.edges.filter((e) => e.source === source && e.destination === destination);
  const known = (name) => table.services.some((s) => s.name === name);
  const end = (name) => (known(name) ? html`<a href=${toService(name)}>${name}</a>` : html`<span>${name}</span>`);
  return html`<div class="title">
      <h1>${end(source)} <span class="quiet">→</span> ${end(destination)}</h1>
      <p><a href=${to("live", [], { client: source, service: destination })}>Watch its requests</a></p>
    </div>
    ${!rows.length && html`<p class="empty">No such call has been seen. <a href=${to("map")}>The map</a> shows those that were.</p>`}
    ${rows.map((e) => html`<${Facts} key=${edgeKey(e)} edge=${e} />`)}
    ${rows.length > 0 && html`<${TimeCharts} subject=${{ source, destination }} range=${query.range} />`}
    <div class="pair">
      <${Counts} id="statuses" title="Answers" head="Status" rows=${sum(rows, "statuses")} />
      <${Counts} id="outcomes" title="What went wrong" head="Outcome" rows=${sum(rows, "outcomes")} />
    </div>`;
}

function Facts({ edge }) {
  return html`<dl class="figures" aria-label=${`${edge.security}, ${edge.protocol}`}>
    <div>
      <dt>Security</dt>
      <dd><${Security} kind=${edge.security} /></dd>
    </div>
    <div>
      <dt>Protocol</dt>
      <dd>${edge.protocol}</dd>
    </div>
    <${Fact} name="Requests" of=${format.rate(edge.rps)} href="#time" />
    <${Fact} name="Success" of=${format.success(edge.success)} href="#outcomes" />
    <${Fact} name="p50" of=${format.latency(edge.p50_s)} href="#time" />
    <${Fact} name="p95" of=${format.latency(edge.p95_s)} href="#time" />
    <${Fact} name="p99" of=${format.latency(edge.p99_s)} href="#time" />
    <${Fact} name="Sent" of=${format.bytes(edge.bytes_sent)} />
    <${Fact} name="Received" of=${format.bytes(edge.bytes_received)} />
    ${
      edge.source_identity &&
      html`<div class="broad">
        <dt>Caller’s identity</dt>
        <dd>
          <a href=${to("identities")}><code>${edge.source_identity}</code></a>
        </dd>
      </div>`
    }
  </dl>`;
}

// sum adds up the rows' maps of counts.
function sum(rows, field) {
  const total = {};
  for (const row of rows) for (const [key, n] of Object.entries(row[field] ?? {})) total[key] = (total[key] ?? 0) + n;
  return Object.entries(total).map(([key, n]) => ({ key, n }));
}

function Counts({ id, title, head, rows }) {
  if (!rows.length) return null;
  const columns = [
    { id: "key", head, by: (r) => r.key, cell: (r) => r.key },
    {
      id: "n",
      head: "Count",
      kind: "number",
      by: (r) => r.n,
      cell: (r) => html`<${Figure} of=${format.count(r.n)} />`,
    },
  ];
  return html`<${Section} id=${id} title=${title} note="since the beginning">
    <${Table} id=${`${id}-table`} caption=${title} columns=${columns} rows=${rows} keyOf=${(r) => r.key} order="-n" />
  <//>`;
}

// Every proxy: is it there, what does it cost, and what did it take its
// workload's traffic for?

import { html } from "../html.js";
import * as format from "../format.js";
import { choose, to, toService } from "../route.js";
import { Empty, Figure, Section } from "../parts/basics.js";
import { figure, lengthOf } from "../parts/columns.js";
import { Table } from "../parts/table.js";

export function Proxies({ table, query }) {
  const chosen = table.proxies.filter((p) => p.workload === query.name);
  return html`<h1>Proxies</h1>
    ${query.name && !chosen.length && html`<p class="notice">No proxy of that name is known: ${query.name}. <a href=${to("proxies")}>All proxies</a></p>`}
    ${chosen.map((p) => html`<${Verdicts} key=${p.identity + p.workload} proxy=${p} now=${table.now} />`)}
    <${Section} id="proxies" title=${`${table.proxies.length} in all`} raw="/api/v1/proxies">
      ${
        table.proxies.length
          ? html`<${Table}
              id="proxies-table"
              caption="Proxies"
              columns=${columns(table.now)}
              rows=${table.proxies}
              keyOf=${(r) => `${r.identity}\n${r.workload}`}
              order="workload"
              rowClass=${(r) => (r.workload === query.name ? "chosen" : r.state === "connected" ? "" : "gone")}
            />`
          : html`<${Empty} type="sudo tulle run web:8080 -- python3 -m http.server 8080"
              >No proxy has reported yet. Each workload brings its own:<//
            >`
      }
    <//>`;
}

const self = (r) => choose({ name: r.workload });

const states = { connected: "ok", ended: "quiet", lost: "bad" };

const columns = (now) => [
  {
    id: "workload",
    head: "Workload",
    kind: "name",
    by: (r) => r.workload,
    cell: (r) => html`<a href=${self(r)} title=${r.identity} class=${lengthOf(r.workload)}>${r.workload}</a>`,
  },
  {
    id: "state",
    head: "State",
    by: (r) => r.state,
    cell: (r) =>
      html`<span class=${`badge ${states[r.state] ?? "bad"}`}
        >${r.state}${r.gone && ` ${format.plain(format.since(r.gone, now))} ago`}</span
      >`,
  },
  { id: "redirect", head: "Redirect", kind: "mid", by: (r) => r.redirect, cell: (r) => r.redirect },
  { id: "version", head: "Version", kind: "low quiet", by: (r) => r.version, cell: (r) => r.version },
  figure("rss", "Memory", (r) => r.rss_bytes, format.bytes, self),
  figure("connections", "Connections", (r) => r.open_connections, format.count, self, { kind: "mid" }),
  figure("watched", "Destinations", (r) => r.watched_destinations, format.count, self, {
    kind: "low",
    title: "that it watches",
  }),
  {
    id: "verdicts",
    head: "Speaks",
    kind: "mid",
    title: "what its traffic was found to be",
    cell: (r) => html`<a class="quietly" href=${self(r)}>${spoken(r) || "–"}</a>`,
  },
  figure(
    "expires",
    "Certificate",
    (r) => r.certificate_expires,
    (v) => format.until(v, now),
    () => to("identities"),
  ),
  figure(
    "started",
    "Up for",
    (r) => r.started,
    (v) => format.since(v, now),
    null,
    { kind: "low" },
  ),
];

const spoken = (r) => [...new Set((r.verdicts ?? []).map((v) => v.protocol))].sort().join(", ");

function Verdicts({ proxy, now }) {
  const columns = [
    {
      id: "destination",
      head: "Destination",
      kind: "code",
      by: (v) => v.destination,
      cell: (v) => html`<code>${v.destination}</code>`,
    },
    {
      id: "service",
      head: "Service",
      kind: "name",
      by: (v) => v.service,
      cell: (v) => (v.service ? html`<a href=${toService(v.service)}>${v.service}</a>` : "–"),
    },
    { id: "protocol", head: "Speaks", by: (v) => v.protocol, cell: (v) => v.protocol },
    { id: "reason", head: "Because", kind: "prose", by: (v) => v.reason, cell: (v) => v.reason },
  ];
  const verdicts = proxy.verdicts ?? [];
  return html`<${Section}
    id="verdicts"
    title=${proxy.workload}
    aside=${html`<a class="pill" href=${to("proxies")}>close <b aria-hidden="true">×</b></a>`}
  >
    <dl class="figures">
      <div>
        <dt>State</dt>
        <dd>${proxy.state}</dd>
      </div>
      <div>
        <dt>Service</dt>
        <dd><a href=${toService(proxy.service)}>${proxy.service}</a></dd>
      </div>
      <div>
        <dt>Address</dt>
        <dd>${proxy.address || "–"}</dd>
      </div>
      <div>
        <dt>Redirect</dt>
        <dd>${proxy.redirect || "–"}</dd>
      </div>
      <div>
        <dt>Last report</dt>
        <dd><${Figure} of=${format.since(proxy.last_report, now)} /> ago</dd>
      </div>
      <div>
        <dt>Version</dt>
        <dd>${proxy.version}</dd>
      </div>
      <div class="broad">
        <dt>Identity</dt>
        <dd>
          <a href=${to("identities")}><code>${proxy.identity}</code></a>
        </dd>
      </div>
    </dl>
    ${
      verdicts.length
        ? html`<${Table}
            id="verdicts-table"
            caption="What its traffic was found to speak"
            columns=${columns}
            rows=${verdicts}
            keyOf=${(v) => `${v.destination}\n${v.protocol}\n${v.reason}`}
            order="destination"
          />`
        : html`<${Empty}>It has not had to find out what its traffic speaks.<//>`
    }
  <//>`;
}

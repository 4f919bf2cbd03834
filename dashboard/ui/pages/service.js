// One service: how it does over time, who calls it, whom it calls, and how the
// balancers share its requests out.

import { html } from "../html.js";
import * as format from "../format.js";
import { withSlow } from "../findings.js";
import { to, toService } from "../route.js";
import { useAnswer } from "../stream.js";
import { Empty, Fact, Fault, Section } from "../parts/basics.js";
import { edgeKey, edges, figure, replicas } from "../parts/columns.js";
import { Table } from "../parts/table.js";
import { TimeCharts } from "../parts/time.js";

export function Service({ table, names: [name], query }) {
  const service = table.services.find((s) => s.name === name);
  const inbound = table.edges.filter((e) => e.destination === name && e.destination_kind === "service");
  const outbound = table.edges.filter((e) => e.source === name && e.source_kind === "workload");
  const mine = withSlow(table.replicas.filter((r) => r.service === name));
  if (!service && !inbound.length && !outbound.length) {
    return html`<h1>${name}</h1>
      <p class="empty">
        The mesh knows no service of this name, or not any more. <a href=${to("overview")}>All services</a>
      </p>`;
  }
  const raw = (what) => `/api/v1/${what}?${new URLSearchParams({ name, range: query.range })}`;
  return html`<${Head} name=${name} service=${service} replica=${query.replica} />
    <${TimeCharts}
      subject=${query.replica ? { service: name, replica: query.replica } : { service: name }}
      range=${query.range}
    />
    <${Section}
      id="replicas"
      title="Replicas"
      raw=${raw("replicas")}
      note="how the callers’ balancers share the requests out; the mark is an even share"
    >
      ${
        mine.length
          ? html`<${Table}
              id="replicas-table"
              caption="Replicas"
              columns=${replicas}
              rows=${mine}
              keyOf=${(r) => r.workload}
              order="workload"
              rowClass=${(r) => (r.slow ? "slow" : r.workload === query.replica ? "chosen" : "")}
            />`
          : html`<${Empty} type=${`sudo tulle run ${name}:8080 --replicas 3 -- COMMAND`}
              >It has no replica that is called. To give a service some:<//
            >`
      }
    <//>
    <div class="pair">
      <${Calls}
        id="inbound"
        title="Called by"
        end="source"
        rows=${inbound}
        raw=${raw("edges")}
        none="Nobody has called it in this range."
      />
      <${Calls}
        id="outbound"
        title="Calls"
        end="destination"
        rows=${outbound}
        raw=${raw("edges")}
        none="It has called nobody in this range."
      />
    </div>
    <${Routes} name=${name} range=${query.range} />`;
}

function Head({ name, service, replica }) {
  const facts = service && [
    service.replicas ? `${service.ready} of ${service.replicas} replicas ready` : "",
    service.protocol,
    service.addresses.join(", "),
  ];
  return html`<div class="title">
    <h1>${name}</h1>
    ${replica && html`<a class="pill" href=${toService(name)} title="Show all replicas">only ${replica} <b aria-hidden="true">×</b></a>`}
    <p>${facts?.filter(Boolean).join(" · ")}</p>
    <p><a href=${to("live", [], { service: name })}>Watch its requests</a></p>
    ${
      service &&
      html`<dl class="figures">
        <${Fact} name="Requests" of=${format.rate(service.rps)} href="#time" />
        <${Fact} name="Success" of=${format.success(service.success)} href="#time" />
        <${Fact} name="p50" of=${format.latency(service.p50_s)} href="#time" />
        <${Fact} name="p95" of=${format.latency(service.p95_s)} href="#time" />
        <${Fact} name="p99" of=${format.latency(service.p99_s)} href="#time" />
        <${Fact} name="mTLS" of=${format.percent(service.mtls)} href="#inbound" />
      </dl>`
    }
  </div>`;
}

const Calls = ({ id, title, end, rows, raw, none }) =>
  html`<${Section} id=${id} title=${title} raw=${raw}>
    ${
      rows.length
        ? html`<${Table}
            id=${`${id}-table`}
            caption=${title}
            columns=${edges(end)}
            rows=${rows}
            keyOf=${edgeKey}
            order="-rps"
          />`
        : html`<${Empty}>${none}<//>`
    }
  <//>`;

function Routes({ name, range }) {
  const { value, error } = useAnswer("routes", { service: name, range });
  const hrefOf = (r) =>
    to("live", [], { service: name, ...(r.kind === "http" ? { method: r.method, path: prefixOf(r.path) } : {}) });
  const columns = [
    { id: "method", head: "Method", by: (r) => r.method, cell: (r) => r.method },
    {
      id: "path",
      head: "Route",
      kind: "path",
      by: (r) => r.path,
      cell: (r) => html`<a href=${hrefOf(r)} title=${r.path}>${r.path}</a>`,
    },
    figure("rps", "Requests", (r) => r.rps, format.rate, hrefOf),
    figure(
      "success",
      "Success",
      (r) => r.success,
      format.success,
      (r) => to("live", [], { service: name, status: "failed" }),
    ),
    figure("p50", "p50", (r) => r.p50_s, format.latency, hrefOf, { kind: "mid" }),
    figure("p99", "p99", (r) => r.p99_s, format.latency, hrefOf),
  ];
  const note = value?.items.length ? `from a sample of ${format.plain(format.count(value.seen))} requests` : "";
  return html`<${Section}
    id="routes"
    title="Routes"
    note=${note}
    raw=${`/api/v1/routes?${new URLSearchParams({ service: name, range })}`}
  >
    ${
      error
        ? html`<${Fault} error=${error} />`
        : value?.items.length
          ? html`<${Table}
              id="routes-table"
              caption="Routes"
              columns=${columns}
              rows=${value.items}
              keyOf=${(r) => `${r.kind} ${r.method} ${r.path}`}
              order="-rps"
            />`
          : html`<${Empty}
              >${value ? "Routes are noted while somebody looks: they come with the next requests." : "Asking for the routes…"}<//
            >`
    }
  <//>`;
}

// A route's path up to where it stands for many.
const prefixOf = (path) => path.split("*")[0];

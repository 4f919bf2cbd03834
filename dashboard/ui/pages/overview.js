// Is all well, and if not, where?

import { html } from "../html.js";
import * as format from "../format.js";
import { findings } from "../findings.js";
import { to, toService } from "../route.js";
import { Empty, Figure, Icon, Section, Spark } from "../parts/basics.js";
import { services } from "../parts/columns.js";
import { Table } from "../parts/table.js";

export function Overview({ table, query }) {
  return html`<h1 class="hidden">Overview</h1>
    <${Tiles} table=${table} />
    <div class="pair">
      <${Findings} table=${table} />
      <${Changes} table=${table} />
    </div>
    <${Section} id="services" title="Services" raw=${`/api/v1/services?range=${query.range}`}>
      ${
        table.services.length
          ? html`<${Table}
              id="services-table"
              caption="Services"
              columns=${services}
              rows=${table.services}
              keyOf=${(r) => r.name}
              order="name"
            />`
          : html`<${Empty} type="sudo tulle run web:8080 -- python3 -m http.server 8080"
              >Nothing runs in the mesh yet. Start something:<//
            >`
      }
    <//>`;
}

function Tiles({ table }) {
  const { totals, certificates, proxies, proxies_lost: lost } = table.overview;
  const slowest = table.services.reduce((a, b) => ((b.p99_s ?? -1) > (a?.p99_s ?? -1) ? b : a), null);
  const open = table.edges.filter((e) => e.requests > 0 && e.security === "plaintext").length;
  return html`<dl class="tiles">
    <${Tile}
      name="Requests"
      of=${format.rate(totals.rps)}
      href=${to("map")}
      note=${`${format.plain(format.count(totals.requests))} in this range`}
    >
      <${Spark} values=${totals.history} width=${160} height=${26} />
    <//>
    <${Tile}
      name="Success"
      of=${format.success(totals.success)}
      href=${to("overview", [], { "services-table": "success" })}
      note=${totals.failures ? `${format.plain(format.count(totals.failures))} failed` : totals.requests ? "none failed" : "no requests"}
    />
    <${Tile}
      name="Latency p99"
      of=${format.latency(totals.p99_s)}
      href=${slowest?.p99_s ? toService(slowest.name) : to("map", [], { color: "p99" })}
      note=${`p50 ${format.plain(format.latency(totals.p50_s))}, p95 ${format.plain(format.latency(totals.p95_s))}`}
    />
    <${Tile}
      name="Mutual TLS"
      of=${{ ...format.percent(totals.mtls), ...(totals.mtls !== null && totals.mtls < 1 && { tone: "warn" }) }}
      href=${to("map")}
      note=${open ? `${open} plaintext edge${open > 1 ? "s" : ""}` : totals.requests ? "every edge" : ""}
    />
    <${Tile}
      name="Certificates"
      of=${format.until(certificates.soonest_expiry, table.now)}
      href=${to("identities")}
      note=${certificates.count ? `the next of ${certificates.count} ends` : "none yet"}
    />
    <${Tile}
      name="Proxies"
      of=${format.count(proxies)}
      href=${to("proxies")}
      note=${lost ? `${lost} lost` : proxies ? "all connected" : "none yet"}
      alarm=${lost > 0}
    />
  </dl>`;
}

const Tile = ({ name, of, note, href, alarm, children }) =>
  html`<a class="tile" href=${href}>
    <dt>${name}</dt>
    <dd><${Figure} of=${of} /></dd>
    <dd class=${`note ${alarm ? "bad" : ""}`}>${note}</dd>
    ${children}
  </a>`;

function Findings({ table }) {
  const found = findings(table);
  return html`<${Section} id="findings" title="Worth a look">
    ${
      found.length
        ? html`<ul class="list">
            ${found.slice(0, 8).map(
              (f) =>
                html`<li key=${f.subject + f.text}>
                  <a href=${f.href} class=${f.bad ? "bad" : "warn"}
                    ><${Icon} name="bad" /><span><b>${f.subject}</b> ${f.text}</span></a
                  >
                </li>`,
            )}
            ${found.length > 8 && html`<li class="more">and ${found.length - 8} more</li>`}
          </ul>`
        : html`<p class="calm">
            <${Icon} name="good" />
            ${table.services.length ? "Nothing: no failures, no slow replica, no plaintext." : "Nothing yet."}
          </p>`
    }
  <//>`;
}

function Changes({ table }) {
  const changes = table.overview.changes.slice(0, 8);
  return html`<${Section} id="changes" title="What changed">
    ${
      changes.length
        ? html`<ul class="list">
            ${changes.map((c) => {
              const age = format.plain(format.since(c.time, table.now));
              const href = c.service
                ? toService(c.service)
                : c.workload
                  ? to("proxies", [], { name: c.workload })
                  : to("identities");
              return html`<li key=${c.id}>
                <a href=${href} class=${c.good ? "" : "bad"}>
                  <${Icon} name=${c.good ? "good" : "bad"} /><span>${c.text}</span
                  ><time title=${format.moment(c.time)}>${age} ago</time>
                </a>
              </li>`;
            })}
          </ul>`
        : html`<p class="calm">Nothing in the last while.</p>`
    }
  <//>`;
}

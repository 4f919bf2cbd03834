// Who is who: identities, the certificates that prove them, and the roots that
// vouch for those.

import { html } from "../html.js";
import * as format from "../format.js";
import { to, toService } from "../route.js";
import { useAnswer } from "../stream.js";
import { Empty, Fault, Figure, Section, Share } from "../parts/basics.js";
import { lengthOf } from "../parts/columns.js";
import { Table } from "../parts/table.js";

export function Identities({ query }) {
  const { value, error } = useAnswer("identities", { range: query.range });
  if (error)
    return html`<h1>Identities</h1>
      <${Fault} error=${error} />`;
  if (!value)
    return html`<h1>Identities</h1>
      <p class="waiting">Asking for the identities…</p>`;
  const rows = value.items.flatMap((i) => (i.holders ?? []).map((h) => ({ ...h, identity: i.identity, name: i.name })));
  return html`<h1>Identities</h1>
    <${Roots} roots=${value.roots ?? []} now=${value.now} />
    <${Section} id="holders" title="Certificates" raw="/api/v1/identities">
      ${
        rows.length
          ? html`<${Table}
              id="holders-table"
              caption="Certificates"
              columns=${columns(value.now, value.roots ?? [])}
              rows=${rows}
              keyOf=${(r) => `${r.identity}\n${r.workload}\n${r.address}`}
              order="workload"
              rowClass=${(r) => (r.state === "connected" ? "" : "gone")}
            />`
          : html`<${Empty} type="sudo tulle run web:8080 -- python3 -m http.server 8080"
              >Nobody holds an identity yet. A workload gets one when it starts:<//
            >`
      }
    <//>`;
}

const columns = (now, roots) => [
  {
    id: "workload",
    head: "Workload",
    kind: "name",
    by: (r) => r.workload,
    cell: (r) => html`<a href=${toService(r.name)} class=${lengthOf(r.workload)}>${r.workload}</a>`,
  },
  {
    id: "identity",
    head: "SPIFFE id",
    kind: "identity",
    by: (r) => r.identity,
    cell: (r) => html`<code>${r.identity}</code>`,
  },
  {
    id: "state",
    head: "State",
    kind: "mid",
    by: (r) => r.state,
    cell: (r) =>
      html`<a class="quietly" href=${to("proxies", [], { name: r.workload })}
        ><span class=${r.state === "lost" ? "bad" : "quiet"}>${r.state}</span></a
      >`,
  },
  {
    id: "expires",
    head: "Ends in",
    kind: "life",
    by: (r) => r.expires,
    title: "renewed by itself at about two thirds of its life",
    cell: (r) => html`<${Life} row=${r} now=${now} />`,
  },
  {
    id: "renewals",
    head: "Renewed",
    kind: "number mid",
    by: (r) => r.renewals,
    cell: (r) => html`<${Figure} of=${format.count(r.renewals)} />`,
  },
  { id: "root", head: "Root", kind: "code low", by: (r) => r.root, cell: (r) => rootName(r.root, roots) },
  {
    id: "serial",
    head: "Serial",
    kind: "code low",
    cell: (r) => html`<code title=${r.serial}>${short(r.serial)}</code>`,
  },
];

const short = (hex) => (hex ? `${hex.slice(0, 12)}${hex.length > 12 ? "…" : ""}` : "–");
const rootName = (sha256, roots) =>
  sha256 ? html`<code title=${roots.find((r) => r.sha256 === sha256)?.subject}>${short(sha256)}</code>` : "–";

// Life is how much of a certificate's time is over, with a mark where renewal is due.
function Life({ row, now }) {
  const left = format.until(row.expires, now);
  const [begin, end] = [new Date(row.issued), new Date(row.expires)];
  if (!row.issued || !row.expires) return html`<${Figure} of=${left} />`;
  return html`<span title=${`from ${format.moment(row.issued)} until ${format.moment(row.expires)}`}>
    <${Share} of=${Math.min(1, Math.max(0, (new Date(now) - begin) / (end - begin)))} fair=${2 / 3} label=${left} />
  </span>`;
}

function Roots({ roots, now }) {
  const all = roots.reduce((n, r) => n + (r.holders ?? 0), 0);
  return html`<${Section}
    id="roots"
    title="Roots"
    note=${roots.length > 1 ? "a rotation is on its way: it is done when the newest signs every certificate" : "what every proxy trusts"}
  >
    ${
      roots.length
        ? html`<div class="cards">
            ${roots.map(
              (r) =>
                html`<dl class="card" key=${r.sha256}>
                  <div>
                    <dt>Subject</dt>
                    <dd>${r.subject}</dd>
                  </div>
                  <div>
                    <dt>Ends in</dt>
                    <dd><${Figure} of=${format.until(r.expires, now)} /></dd>
                  </div>
                  <div>
                    <dt>Signs ${r.holders ?? 0} of ${all} certificates</dt>
                    <dd>
                      <${Share} of=${all ? r.holders / all : 0} label=${format.percent(all ? r.holders / all : null)} />
                    </dd>
                  </div>
                  <div class="broad">
                    <dt>SHA-256</dt>
                    <dd><code>${r.sha256}</code></dd>
                  </div>
                </dl>`,
            )}
          </div>`
        : html`<${Empty}>The control plane names no root.<//>`
    }
  <//>`;
}

// The frame around every page: where one is, over what time, and whether the
// figures are live.

import { html, render, useEffect } from "./html.js";
import { clock } from "./format.js";
import { choose, ranges, to, useRoute } from "./route.js";
import { follow, useMesh } from "./stream.js";
import { Help, useShortcuts } from "./shortcuts.js";
import { Choice, Icon } from "./parts/basics.js";
import { Overview } from "./pages/overview.js";
import { MapPage } from "./pages/map.js";
import { Service } from "./pages/service.js";
import { Edge } from "./pages/edge.js";
import { Live } from "./pages/live.js";
import { Identities } from "./pages/identities.js";
import { Proxies } from "./pages/proxies.js";

const pages = {
  overview: ["Overview", Overview],
  map: ["Map", MapPage],
  live: ["Live", Live],
  identities: ["Identities", Identities],
  proxies: ["Proxies", Proxies],
  service: ["Service", Service],
  edge: ["Calls", Edge],
};
const inMenu = ["overview", "map", "live", "identities", "proxies"];

function App() {
  const { page, names, query } = useRoute();
  const mesh = useMesh();
  useEffect(() => follow(query.range), [query.range]);
  useShortcuts();
  const [title, Page] = pages[page] ?? ["Nothing here", NotFound];
  useEffect(() => {
    document.title = `${names.length ? names.join(" → ") : title} · Tulle`;
  }, [title, names.join()]);
  return html`
    <a class="skip" href="#main">Skip to the figures</a>
    <header class="top">
      <a class="brand" href=${to("overview")} title=${mesh.table?.about.trust_domain}>
        <img src=${logo} alt="" width="26" height="26" /><b>Tulle</b>
      </a>
      <nav class="menu" aria-label="Pages">
        ${inMenu.map(
          (id) =>
            html`<a key=${id} href=${to(id)} aria-current=${id === page ? "page" : null}>
              <${Icon} name=${id} /><span>${pages[id][0]}</span>
            </a>`,
        )}
      </nav>
      <${Choice} label="Time range" options=${ranges} chosen=${query.range} hrefOf=${(range) => choose({ range })} />
      <${Status} mesh=${mesh} />
    </header>
    <main id="main" tabindex="-1" class=${mesh.state === "lost" ? "lost" : ""}>
      <${Lost} mesh=${mesh} />
      ${
        mesh.table
          ? html`<${Page} key=${page} table=${mesh.table} names=${names} query=${query} />`
          : mesh.state === "connecting" && html`<p class="waiting">Asking the mesh…</p>`
      }
    </main>
    <${Foot} table=${mesh.table} />
    <${Help} />
  `;
}

// The file's address holds what the assets' folder is called.
const logo = new URL("favicon.svg", import.meta.url).pathname;
const licenses = new URL("vendor/LICENSES.txt", import.meta.url).pathname;

const states = { connecting: "Connecting…", live: "Live", lost: "Disconnected", trouble: "Incomplete" };

const Status = ({ mesh }) => html`<p class=${`status ${mesh.state}`} role="status"><i></i>${states[mesh.state]}</p>`;

// Lost says what to do when there is no news.
function Lost({ mesh }) {
  if (mesh.state === "trouble") return html`<p class="notice" role="alert">The control plane says: ${mesh.trouble}</p>`;
  if (mesh.state !== "lost") return null;
  return html`<p class="notice" role="alert">
    <b>The control plane does not answer.</b>${" "}
    ${mesh.table ? `Below is what it said at ${clock(mesh.table.now)}; the workloads go on without it. ` : ""} This page
    keeps trying. On one host: <code>sudo tulle check</code> says what is wrong, <code>sudo tulle up -d</code> starts
    it. On Kubernetes run ${" "}<code>tulle dashboard</code> again.
  </p>`;
}

function NotFound() {
  return html`<h1>Nothing here</h1>
    <p class="empty">There is no such page. <a href=${to("overview")}>The overview</a> leads everywhere.</p>`;
}

function Foot({ table }) {
  const coverage = table?.overview.coverage;
  return html`<footer>
    <span>
      ${table && html`Tulle <bdi>${table.about.version}</bdi>, trust domain <bdi>${table.about.trust_domain}</bdi>`}
      ${coverage?.other > 0 && `; ${coverage.other} edges beyond what is kept apart are counted as “other”`}
    </span>
    <span> <a href="/api/v1/openapi.yaml">API</a> · <a href=${licenses}>Licences</a> · keys: <kbd>?</kbd> </span>
  </footer>`;
}

const root = document.getElementById("app");
root.replaceChildren();
render(html`<${App} />`, root);

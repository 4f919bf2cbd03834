// Who calls whom, as a picture: a line's width is its rate, its colour how well
// it goes, and what is not protected stands out.

import { html, useLayoutEffect, useMemo, useRef, useState } from "../html.js";
import * as format from "../format.js";
import { choose, to, toEdge, toService } from "../route.js";
import { Choice, Empty, iconPath, isOpen, Section, Security } from "../parts/basics.js";
import { edgeKey, edges } from "../parts/columns.js";
import { fitting, graphOf, nodeHeight, place } from "../parts/graph.js";
import { Table } from "../parts/table.js";

const colorings = { success: "Success", p99: "p99" };
const mostLabels = 40; // lines; beyond that figures only clutter

export function MapPage({ table, query }) {
  const coloring = Object.hasOwn(colorings, query.color) ? query.color : "success";
  return html`<div class="title">
      <h1>Map</h1>
      <${Choice}
        label="Colour"
        options=${colorings}
        chosen=${coloring}
        hrefOf=${(color) => choose({ color: color === "success" ? "" : color })}
      />
      <${Legend} coloring=${coloring} />
    </div>
    ${
      table.services.length || table.edges.length
        ? html`<${Picture} table=${table} coloring=${coloring} />`
        : html`<${Empty} type="sudo tulle run web:8080 -- python3 -m http.server 8080"
            >Nothing runs in the mesh yet. Start something:<//
          >`
    }
    <${Section} id="edges" title="Who calls whom" raw=${`/api/v1/edges?range=${query.range}`}>
      ${
        table.edges.length
          ? html`<${Table}
              id="edges-table"
              caption="Who calls whom"
              columns=${edges("source", "destination")}
              rows=${table.edges}
              keyOf=${edgeKey}
              order="-rps"
            />`
          : html`<${Empty} type="sudo tulle run --rm client -- curl -s http://web.mesh:8080/"
              >No traffic yet. Make some:<//
            >`
      }
    <//>`;
}

const steps = {
  success: [
    ["ok", "99.9 % and more"],
    ["warn", "99 % and more"],
    ["bad", "less"],
    ["idle", "no requests"],
  ],
  p99: [
    ["heat1", "under 1 ms"],
    ["heat2", "10 ms"],
    ["heat3", "100 ms"],
    ["heat4", "1 s"],
    ["heat5", "more"],
  ],
};

const Legend = ({ coloring }) =>
  html`<p class="legend">
    ${steps[coloring].map(([tone, word]) => html`<span key=${tone} class="key"><i class=${`swatch ${tone}`}></i>${word}</span>`)}
    <span class="key"><${Security} kind="mtls" /></span>
    <span class="key"><${Security} kind="plaintext" /></span>
    <span class="key quiet">width: requests per second</span>
  </p>`;

function toneOf(edge, coloring) {
  if (!edge.requests) return "idle";
  if (coloring === "success") return edge.success === null ? "idle" : format.health(edge.success);
  const limit = [1e-3, 1e-2, 0.1, 1].findIndex((s) => (edge.p99_s ?? 0) < s);
  return edge.p99_s === null ? "idle" : `heat${limit < 0 ? 5 : limit + 1}`;
}

const widthOf = (rps) => Math.round(3 + 5 * Math.log10(1 + rps)) / 2; // in steps, to draw less

function Picture({ table, coloring }) {
  const host = useRef(null);
  const [room, setRoom] = useState(0);
  const [focus, setFocus] = useState(null);
  useLayoutEffect(() => {
    const resize = new ResizeObserver(([entry]) => setRoom(Math.floor(entry.contentRect.width)));
    resize.observe(host.current);
    return () => resize.disconnect();
  }, []);
  const graph = graphOf(table);
  const narrow = room < 620;
  const labels = graph.lines.length <= mostLabels;
  const topology = [...graph.nodes.map((n) => n.id), "", ...graph.lines.map((l) => l.key)].join("\v");
  const placed = useMemo(() => room && place(graph, { narrow, labels }), [topology, narrow, room > 0]);
  const fit = placed ? Math.min(1, Math.max(0.62, room / placed.width)) : 1;
  return html`<div class="map" ref=${host}>
    ${
      placed &&
      html`<svg
        class=${focus ? "focused" : ""}
        width=${placed.width * fit}
        height=${placed.height * fit}
        viewBox=${`0 0 ${placed.width} ${placed.height}`}
        role="group"
        aria-label="Map of the mesh; the table below says the same"
        onPointerLeave=${() => setFocus(null)}
      >
        <defs>
          <marker
            id="tip"
            viewBox="0 0 8 8"
            refX="6.5"
            refY="4"
            markerWidth="11"
            markerHeight="11"
            markerUnits="userSpaceOnUse"
            orient="auto"
          >
            <path d="M0 0.5 8 4 0 7.5z" fill="context-stroke" />
          </marker>
        </defs>
        ${graph.lines.map((l) => html`<${Line} key=${l.key} line=${l} at=${placed.lines.get(l.key)} tone=${toneOf(l.edge, coloring)} lit=${focus === l.from || focus === l.to} />`)}
        ${graph.lines.map((l) => html`<${Lock} key=${l.key} edge=${l.edge} at=${placed.lines.get(l.key)} labels=${labels} narrow=${narrow} lit=${focus === l.from || focus === l.to} />`)}
        ${graph.nodes.map((n) => html`<${Node} key=${n.id} node=${n} at=${placed.nodes.get(n.id)} narrow=${narrow} onFocus=${() => setFocus(n.id)} onBlur=${() => setFocus(null)} />`)}
      </svg>`
    }
  </div>`;
}

// What a line is does not change; its figures do, and are told for the one that is pointed at.
const nameOf = (edge) => `${edge.source} → ${edge.destination}: ${edge.security}, ${edge.protocol}`;

function describe(edge) {
  const figures = [format.rate(edge.rps), format.success(edge.success), format.latency(edge.p99_s)].map(format.plain);
  return `${nameOf(edge)}, ${figures[0]}, ${figures[1]} success, p99 ${figures[2]}`;
}

function Line({ line: { edge }, at, tone, lit }) {
  const [pointed, setPointed] = useState(false);
  return html`<a
    onPointerEnter=${() => setPointed(true)}
    onPointerLeave=${() => setPointed(false)}
    href=${toEdge(edge)}
    aria-label=${nameOf(edge)}
    class=${`line ${tone} ${isOpen(edge) ? "open" : ""} ${lit ? "lit" : ""}`}
    data-edge=${`${edge.source} ${edge.destination}`}
    data-security=${edge.security}
  >
    <title>${pointed ? describe(edge) : ""}</title>
    <path class="reach" d=${at.path} />
    <path class="stroke" d=${at.path} stroke-width=${widthOf(edge.rps)} marker-end="url(#tip)" />
  </a>`;
}

// Lock says how a line is protected and, where there is room, its rate and p99.
function Lock({ edge, at, labels, narrow, lit }) {
  const open = isOpen(edge);
  const figures = [format.rate(edge.rps), ...(narrow ? [] : [format.latency(edge.p99_s)])];
  const text = labels ? (edge.requests ? figures.map(format.plain).join(" · ") : "idle") : "";
  const width = labels ? 24 + text.length * 5.9 : 20;
  return html`<g
    class=${`lock ${open ? "alarm" : edge.security} ${lit ? "lit" : ""}`}
    transform=${`translate(${at.x.toFixed(1)} ${at.y.toFixed(1)})`}
    aria-hidden="true"
  >
    <rect x=${-width / 2} y="-10" width=${width} height="20" rx="10" />
    ${edge.security !== "local" && html`<path transform=${`translate(${-width / 2 + 4} -6.5) scale(.8)`} d=${iconPath(open ? "open" : "locked")} />`}
    ${text && html`<text x=${-width / 2 + 19} y="3.8">${text}</text>`}
  </g>`;
}

const kinds = { host: "this host", address: "outside", outside: "outside" };

function Node({ node, at, narrow, onFocus, onBlur }) {
  const s = node.service;
  const left = at.x - at.width / 2;
  const tone = s?.requests ? format.health(s.success) : "idle";
  const unready = s && s.ready < s.replicas;
  const facts = [];
  if (s?.replicas) facts.push(`${s.ready}/${s.replicas} ready`);
  if (s?.requests && !narrow) facts.push(format.plain(format.rate(s.rps)));
  const below = facts.join(" · ") || (kinds[node.kind] ?? "calls only");
  return html`<a
    href=${node.kind === "service" ? toService(node.name) : to("map")}
    class=${`node ${node.kind} ${unready ? "bad" : tone}`}
    data-node=${node.name}
    transform=${`translate(${left.toFixed(1)} ${(at.y - nodeHeight / 2).toFixed(1)})`}
    onPointerEnter=${onFocus}
    onPointerLeave=${onBlur}
    onFocus=${onFocus}
    onBlur=${onBlur}
  >
    <title>${node.name}</title>
    <rect class="box" width=${at.width} height=${nodeHeight} rx="9" />
    <rect class="mark" x="7" y="10" width="4" height=${nodeHeight - 20} rx="2" />
    <text class="name" x="20" y="21">${fitting(node.name)}</text>
    <text class="below" x="20" y="37">${below}</text>
  </a>`;
}

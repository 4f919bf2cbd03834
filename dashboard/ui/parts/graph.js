// Where the map puts services and calls. The layout depends on who calls whom
// only, never on figures, so that nothing moves while the figures do.

import { Graph, layout } from "../vendor/dagre.mjs";

export const nodeHeight = 48;
const label = { wide: { width: 132, height: 24 }, narrow: { width: 62, height: 24 } };

const isMeshed = (kind) => kind === "workload" || kind === "service";
const idOf = (kind, name) => (isMeshed(kind) ? `mesh:${name}` : `${kind}:${name}`);

export const lineKey = (e) =>
  [e.source_kind, e.source, e.destination_kind, e.destination, e.security, e.protocol, e.source_identity].join("\n");

// graphOf returns {nodes, lines}, each sorted, so that the same mesh always
// looks the same. A node is {id, name, kind, service}; a line {key, from, to, edge}.
export function graphOf(table) {
  const nodes = new Map();
  const node = (kind, name) => {
    const id = idOf(kind, name);
    if (!nodes.has(id)) nodes.set(id, { id, name, kind: isMeshed(kind) ? "service" : kind });
    return nodes.get(id);
  };
  for (const s of table.services) node("service", s.name).service = s;
  const lines = table.edges.map((edge) => ({
    key: lineKey(edge),
    from: node(edge.source_kind, edge.source).id,
    to: node(edge.destination_kind, edge.destination).id,
    edge,
  }));
  const by = (field) => (a, b) => (a[field] < b[field] ? -1 : a[field] > b[field] ? 1 : 0);
  return { nodes: [...nodes.values()].sort(by("id")), lines: lines.sort(by("key")) };
}

const pen = document.createElement("canvas").getContext("2d");

function widthOf(name, least) {
  pen.font = "600 14px system-ui, sans-serif";
  return Math.min(220, Math.max(least, Math.ceil(pen.measureText(name).width) + 34));
}

// place returns {width, height, nodes: Map of {x, y, width}, lines: Map of
// {path, x, y}}. Callers are left (or, where it is narrow, on top) of what they call.
export function place({ nodes, lines }, { narrow, labels }) {
  const graph = new Graph({ multigraph: true });
  graph.setGraph({
    rankdir: narrow ? "TB" : "LR",
    nodesep: narrow ? 16 : 26,
    edgesep: 14,
    ranksep: labels ? (narrow ? 34 : 40) : 60,
    marginx: 14,
    marginy: 14,
  });
  graph.setDefaultEdgeLabel(() => ({}));
  for (const n of nodes) graph.setNode(n.id, { width: widthOf(n.name, narrow ? 104 : 150), height: nodeHeight });
  for (const l of lines)
    graph.setEdge(l.from, l.to, labels ? { ...label[narrow ? "narrow" : "wide"], labelpos: "c" } : {}, l.key);
  layout(graph);
  const { width, height } = graph.graph();
  return {
    width: Math.max(1, width),
    height: Math.max(1, height),
    nodes: new Map(nodes.map((n) => [n.id, graph.node(n.id)])),
    lines: new Map(lines.map((l) => [l.key, lineOf(graph.edge(l.from, l.to, l.key))])),
  };
}

// lineOf makes a smooth path of the points that dagre leads a line through.
function lineOf({ points, x, y }) {
  const at = (p) => `${p.x.toFixed(1)},${p.y.toFixed(1)}`;
  const middle = (a, b) => ({ x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 });
  let path = `M${at(points[0])}`;
  for (let i = 1; i < points.length - 1; i++) {
    const end = i === points.length - 2 ? points[i + 1] : middle(points[i], points[i + 1]);
    path += ` Q${at(points[i])} ${at(end)}`;
  }
  if (points.length === 2) path += ` L${at(points[1])}`;
  const half = points[Math.floor(points.length / 2)];
  return { path, x: x ?? half.x, y: y ?? half.y };
}

// Where the map puts services and calls. The layout depends on who calls whom
// only, never on figures, so that nothing moves while the figures do.

import { Graph, layout } from "../vendor/dagre.mjs";

export const nodeHeight = 48;
const loopHeight = 30; // of a call to oneself, below its box
const label = { wide: { width: 132, height: 24 }, narrow: { width: 62, height: 24 } };

const isMeshed = (kind) => kind === "workload" || kind === "service";
const idOf = (kind, name) => (isMeshed(kind) ? `mesh:${name}` : `${kind}:${name}`);

// together makes one line of the calls between two that are protected alike,
// whatever they speak. Percentiles cannot be added up: the worst is shown.
function together(edges) {
  if (edges.length === 1) return edges[0];
  const sum = (field) => edges.reduce((n, e) => n + e[field], 0);
  const requests = sum("requests");
  return {
    ...edges[0],
    protocol: [...new Set(edges.map((e) => e.protocol))].sort().join(", "),
    rps: sum("rps"),
    requests,
    success: requests ? 1 - sum("failures") / requests : null,
    p99_s: edges.reduce((worst, e) => (e.p99_s > worst ? e.p99_s : worst), null),
  };
}

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
  const groups = new Map();
  for (const e of table.edges) {
    const [from, to] = [node(e.source_kind, e.source).id, node(e.destination_kind, e.destination).id];
    const key = [from, to, e.security].join("\n");
    if (!groups.has(key)) groups.set(key, { key, from, to, edges: [] });
    groups.get(key).edges.push(e);
  }
  const lines = [...groups.values()].map(({ edges, ...line }) => ({ ...line, edge: together(edges) }));
  const by = (field) => (a, b) => (a[field] < b[field] ? -1 : a[field] > b[field] ? 1 : 0);
  return { nodes: [...nodes.values()].sort(by("id")), lines: lines.sort(by("key")) };
}

const pen = document.createElement("canvas").getContext("2d");

const widest = 220;
const around = 34; // px of a box beside its name

function widthOf(name, least) {
  pen.font = "600 14px system-ui, sans-serif";
  return Math.min(widest, Math.max(least, Math.ceil(pen.measureText(name).width) + around));
}

// fitting cuts a name that is longer than the widest box.
export function fitting(name) {
  if (widthOf(name, 0) < widest) return name;
  let end = name.length;
  while (end > 1 && widthOf(`${name.slice(0, end)}…`, 0) >= widest) end--;
  return `${name.slice(0, end)}…`;
}

// place returns {width, height, nodes: Map of {x, y, width}, lines: Map of
// {path, x, y}}. Callers are left (or, where it is narrow, on top) of what they call.
export function place({ nodes, lines }, { narrow, labels }) {
  const graph = new Graph({ multigraph: true });
  graph.setGraph({
    rankdir: narrow ? "TB" : "LR",
    nodesep: narrow ? 16 : 26,
    edgesep: 14,
    ranksep: labels ? (narrow ? 34 : 40) : 110,
    marginx: 14,
    marginy: 14,
  });
  graph.setDefaultEdgeLabel(() => ({}));
  const calledByItself = new Set(lines.filter((l) => l.from === l.to).map((l) => l.from));
  for (const n of nodes) {
    const height = nodeHeight + (calledByItself.has(n.id) ? 2 * loopHeight : 0);
    graph.setNode(n.id, { width: widthOf(n.name, narrow ? 104 : 150), height });
  }
  for (const l of lines.filter((l) => l.from !== l.to))
    graph.setEdge(l.from, l.to, labels ? { ...label[narrow ? "narrow" : "wide"], labelpos: "c" } : {}, l.key);
  layout(graph);
  const { width, height } = graph.graph();
  const at = new Map(nodes.map((n) => [n.id, { ...graph.node(n.id), height: nodeHeight }]));
  return {
    width: Math.max(1, width),
    height: Math.max(1, height),
    nodes: at,
    lines: pathsOf(lines, at, (l) => graph.edge(l.from, l.to, l.key), narrow),
  };
}

// pathsOf leads each line from one side of its caller's box to the opposite side
// of the callee's, through the points that dagre keeps free for it. Lines that
// share a side are spread over it in the order in which they leave.
function pathsOf(lines, nodes, routeOf, narrow) {
  const [along, across] = narrow ? ["y", "x"] : ["x", "y"];
  const size = (node, axis) => (axis === "x" ? node.width : node.height);
  const ports = new Map(); // of each side of a box: the lines there
  const side = (id, out) => `${id} ${out}`;
  const forward = (l) => nodes.get(l.from)[along] < nodes.get(l.to)[along];
  for (const l of lines.filter(forward)) {
    for (const [key, far] of [
      [side(l.from, true), nodes.get(l.to)],
      [side(l.to, false), nodes.get(l.from)],
    ]) {
      ports.set(key, [...(ports.get(key) ?? []), { key: l.key, far: far[across] }]);
    }
  }
  for (const list of ports.values()) list.sort((a, b) => a.far - b.far);
  const port = (id, key, out) => {
    const node = nodes.get(id);
    const list = ports.get(side(id, out));
    const room = size(node, across) * 0.6;
    const offset = list.length > 1 ? (list.findIndex((p) => p.key === key) / (list.length - 1) - 0.5) * room : 0;
    return { [along]: node[along] + ((out ? 1 : -1) * size(node, along)) / 2, [across]: node[across] + offset };
  };
  return new Map(
    lines.map((l) => {
      if (l.from === l.to) return [l.key, below(nodes.get(l.from))];
      const route = routeOf(l);
      if (!forward(l)) return [l.key, loose(route)];
      const [start, end] = [port(l.from, l.key, true), port(l.to, l.key, false)];
      return [l.key, smooth(start, route.points.slice(1, -1), end, along, route)];
    }),
  );
}

const text = (p) => `${p.x.toFixed(1)},${p.y.toFixed(1)}`;
const middle = (a, b) => ({ x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 });

// smooth bends only between the points, so that it runs straight through them.
function smooth(start, between, end, along, { x, y }) {
  const inside = (p) => p[along] > start[along] + 8 && p[along] < end[along] - 8;
  const spot =
    x === undefined ? (between.length > 1 ? between[Math.floor(between.length / 2)] : middle(start, end)) : { x, y };
  const points = [start, ...(between.length > 1 || x !== undefined ? between.filter(inside) : []), end];
  let path = `M${text(start)}`;
  for (let i = 1; i < points.length; i++) {
    const half = (points[i - 1][along] + points[i][along]) / 2;
    path += ` C${text({ ...points[i - 1], [along]: half })} ${text({ ...points[i], [along]: half })} ${text(points[i])}`;
  }
  return { path, ...spot };
}

// below is for calls to oneself: a loop under the box.
function below({ x, y, width, height }) {
  const [left, right, bottom] = [x - width / 4, x + width / 4, y + height / 2];
  return {
    path: `M${right},${bottom} C${right},${bottom + loopHeight} ${left},${bottom + loopHeight} ${left},${bottom}`,
    x,
    y: bottom + 20,
  };
}

// loose is for calls against the direction of the map.
function loose({ points, x, y }) {
  let path = `M${text(points[0])}`;
  for (let i = 1; i < points.length - 1; i++) {
    const end = i === points.length - 2 ? points[i + 1] : middle(points[i], points[i + 1]);
    path += ` Q${text(points[i])} ${text(end)}`;
  }
  if (points.length === 2) path += ` L${text(points[1])}`;
  const half = points[Math.floor(points.length / 2)];
  return { path, x: x ?? half.x, y: y ?? half.y };
}

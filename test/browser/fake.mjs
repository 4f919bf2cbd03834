// A control plane that makes everything up: as many services as one likes, and
// names as hostile as one likes. It answers as dashboard/openapi.yaml says, and
// serves the page from the source folder. By hand, to work on the page or to
// measure what it costs:
//
//	node test/browser/fake.mjs [--edges 200] [--port 4190]

import { createServer } from "node:http";
import { readdir, readFile } from "node:fs/promises";
import { extname } from "node:path";
import { fileURLToPath } from "node:url";

const ui = new URL("../../dashboard/ui/", import.meta.url);
const types = {
  ".html": "text/html",
  ".css": "text/css",
  ".js": "text/javascript",
  ".mjs": "text/javascript",
  ".svg": "image/svg+xml",
};

const wave = (seed, t) => 1 + 0.3 * Math.sin(t / 17 + seed) + 0.1 * Math.sin(t / 3 + seed * 7);
const round = (x, unit) => Math.round(x * unit) / unit;

function figures(seed, t, rate, { failing = 0, slow = 1 } = {}) {
  const rps = round(rate * wave(seed, t), 100);
  const requests = Math.round(rps * 300);
  const failures = Math.round(requests * failing);
  const p50 = 0.002 * slow * wave(seed + 1, t);
  return {
    rps,
    requests,
    failures,
    success: requests ? 1 - failures / requests : null,
    p50_s: p50,
    p95_s: p50 * 2.4,
    p99_s: p50 * 5,
    open: Math.round(rps / 50),
    bytes_sent: requests * 300,
    bytes_received: requests * 2000,
    total_requests: requests * 4,
    total_failures: failures * 4,
    history: Array.from({ length: 60 }, (_, i) => round(rate * wave(seed, t - 5 * (60 - i)), 100)),
  };
}

// shop is what the demo looks like, with something wrong here and there.
export const shop = {
  services: { web: 1, catalog: 3, redis: 1, cart: 2, load: 1 },
  edges: [
    ["load", "web", 150],
    ["web", "catalog", 150],
    ["web", "cart", 40, { failing: 0.03 }],
    ["catalog", "redis", 450, { protocol: "tcp" }],
    ["cart", "redis", 60, { protocol: "tcp" }],
    ["cart", "web", 4],
    ["catalog", "catalog", 1],
    ["10.84.0.1", "web", 2, { source_kind: "host", security: "plaintext" }],
    ["web", "93.184.216.34:443", 0.3, { destination_kind: "outside", security: "plaintext", protocol: "tls" }],
  ],
};

// large has about so many edges, in layers as services come.
export function large(edges) {
  const mesh = { services: {}, edges: [] };
  const layers = Math.ceil(Math.sqrt(edges / 8));
  const width = Math.ceil(edges / layers / 2.5);
  const name = (layer, i) => `${["edge", "api", "core", "store", "cache", "queue"][layer % 6]}-${layer}-${i}`;
  for (let layer = 0; layer <= layers; layer++) {
    for (let i = 0; i < width; i++) mesh.services[name(layer, i)] = 2;
  }
  for (let n = 0; n < edges; n++) {
    const layer = n % layers;
    const i = Math.floor(n / layers) % width;
    const hop = Math.floor(n / layers / width);
    mesh.edges.push([name(layer, i), name(layer + 1, (i * 7 + hop * 3) % width), 5 + (n % 90)]);
  }
  return mesh;
}

// named is a mesh in which every name is the given text.
export const named = (text) => ({
  services: { [text]: 2, [`${text}2`]: 1 },
  edges: [
    [text, `${text}2`, 20],
    [text, text, 1],
    [`${text}3`, text, 5, { source_kind: "address", security: "plaintext" }],
    [text, `${text}4`, 5, { destination_kind: "outside", security: "plaintext" }],
  ],
  text,
});

export function table(mesh, range = "5m", now = new Date()) {
  const t = now / 1000;
  const text = mesh.text ?? "";
  const names = Object.keys(mesh.services);
  const edges = mesh.edges.map(([source, destination, rate, more = {}], i) => ({
    source,
    source_kind: "workload",
    source_identity: `spiffe://tulle.local/ns/default/sa/${source}`,
    destination,
    destination_kind: "service",
    security: "mtls",
    protocol: "http/1",
    outcomes: more.failing ? { [`app-failure${text}`]: 120 } : {},
    statuses: { 200: 4000, ...(more.failing ? { 503: 120 } : {}) },
    ...figures(i, t, rate, more),
    ...more,
  }));
  const services = names.map((name, i) => {
    const rate = mesh.edges.filter((e) => e[1] === name).reduce((n, e) => n + e[2], 0);
    const failing = mesh.edges.find((e) => e[1] === name && e[3]?.failing)?.[3].failing;
    return {
      name,
      source: "run",
      protocol: text,
      addresses: [`10.84.0.${i}`],
      ready: mesh.services[name],
      replicas: mesh.services[name],
      mtls: rate ? 1 : null,
      ...figures(i, t, rate, { failing }),
    };
  });
  const replicas = services.flatMap((s) =>
    Array.from({ length: s.replicas }, (_, i) => {
      const slow = s.replicas > 2 && i === s.replicas - 1;
      const share = s.replicas === 1 ? 1 : slow ? 0.04 : 0.96 / (s.replicas - (s.replicas > 2));
      return {
        service: s.name,
        workload: `${s.name}-${i + 1}`,
        address: `10.84.1.${i}`,
        ready: true,
        share: round(share * wave(i, t) * 0.5 + share * 0.5, 1000),
        fair: 1 / s.replicas,
        ewma_s: slow ? 0.052 : 0.0021,
        in_flight: 2,
        clients: [],
        ...figures(i, t, s.rps * share, { slow: slow ? 25 : 1 }),
      };
    }),
  );
  const proxies = replicas.map((r, i) => ({
    workload: r.workload,
    service: r.service,
    identity: `spiffe://tulle.local/ns/default/sa/${r.service}`,
    address: r.address,
    state: "connected",
    version: `0.2.0${text}`,
    redirect: `nftables${text}`,
    started: new Date(now - 3600e3).toISOString(),
    last_report: now.toISOString(),
    gone: "",
    rss_bytes: 9.6e6 + i * 1e5,
    open_connections: 12 + i,
    watched_destinations: 3,
    certificate_expires: new Date(+now + 20 * 3600e3).toISOString(),
    certificate_renewals: 1,
    edges: 2,
    verdicts: [
      {
        destination: `10.84.0.9:8080${text}`,
        service: r.service,
        protocol: "http/1",
        reason: `the first bytes are a request line${text}`,
      },
      {
        destination: "10.84.0.3:6379",
        service: "redis",
        protocol: "tcp",
        reason: "the client's first bytes are neither HTTP nor TLS",
      },
    ],
  }));
  const rate = mesh.edges.reduce((n, e) => n + e[2], 0);
  return {
    now: now.toISOString(),
    range,
    about: {
      version: `0.2.0${text}`,
      trust_domain: `tulle.local${text}`,
      url: "",
      started: "",
      series_from: "history",
    },
    overview: {
      now: now.toISOString(),
      range,
      totals: { ...figures(1, t, rate, { failing: 0.0006 }), mtls: 0.995 },
      services: services.length,
      services_not_ready: 0,
      proxies: proxies.length,
      proxies_lost: 0,
      certificates: {
        count: proxies.length,
        soonest_expiry: new Date(+now + 19 * 3600e3).toISOString(),
        soonest_workload: "web-1",
        roots: 1,
        root_expiry: new Date(+now + 3e10).toISOString(),
      },
      changes: [
        {
          id: 3,
          time: new Date(now - 40e3).toISOString(),
          kind: "success-dropped",
          good: false,
          service: names[3],
          workload: "",
          text: `Success of ${names[3] ?? names[0]} fell to 97 %${text}`,
        },
        {
          id: 2,
          time: new Date(now - 100e3).toISOString(),
          kind: "certificate-renewed",
          good: true,
          service: names[0],
          workload: "",
          text: "web-1 renewed its certificate",
        },
        {
          id: 1,
          time: new Date(now - 2000e3).toISOString(),
          kind: "workload-appeared",
          good: true,
          service: names[0],
          workload: "",
          text: "web-1 appeared",
        },
      ],
      coverage: { since: "", step_s: 5, coarse_until: "", bytes: 1e6, series: 10, other: 0 },
    },
    services,
    edges,
    replicas,
    proxies,
  };
}

const seconds = { "5m": 300, "15m": 900, "1h": 3600 };

export function series(range = "5m", now = new Date()) {
  const end = Math.floor(now / 5000) * 5;
  const t = Array.from({ length: seconds[range] / 5 }, (_, i) => end - seconds[range] + i * 5);
  const line = (seed, scale) => t.map((at, i) => (i < t.length / 6 ? null : round(scale * wave(seed, at), 1e6)));
  return {
    now: now.toISOString(),
    range,
    from: "history",
    step_s: 5,
    t,
    rps: line(1, 150),
    success: line(1, 0).map((v) => (v === null ? null : 0.9995)),
    p50_s: line(2, 0.002),
    p95_s: line(3, 0.012),
    p99_s: line(4, 0.052),
  };
}

export function heatmap(range = "5m", now = new Date()) {
  const { t, ...rest } = series(range, now);
  const bounds_s = Array.from({ length: 61 }, (_, i) => 5e-5 * 10 ** ((i * 6.08) / 60));
  const hump = (b, at, n) => n * Math.exp(-(Math.log(b / at) ** 2) * 6);
  const counts = t.map((at, i) =>
    i < t.length / 6
      ? null
      : bounds_s.slice(1).map((b) => Math.round(hump(b, 0.002 * wave(2, at), 300) + hump(b, 0.052, 12 * wave(4, at)))),
  );
  return { ...rest, t, bounds_s, counts };
}

export const routes = (service, text = "", now = new Date()) => ({
  now: now.toISOString(),
  range: "5m",
  service,
  since: now.toISOString(),
  seen: 1200,
  missed: 0,
  items: [
    {
      kind: "http",
      method: "GET",
      path: `/items${text}`,
      rps: 120,
      requests: 900,
      failures: 0,
      success: 1,
      p50_s: 0.002,
      p95_s: 0.01,
      p99_s: 0.05,
    },
    {
      kind: "http",
      method: "POST",
      path: "/items/*",
      rps: 20,
      requests: 300,
      failures: 9,
      success: 0.97,
      p50_s: 0.004,
      p95_s: 0.02,
      p99_s: 0.07,
    },
  ],
});

export function identities(mesh, now = new Date()) {
  const { proxies } = table(mesh, "5m", now);
  const root = {
    subject: `CN=tulle.local${mesh.text ?? ""}`,
    sha256: "ab12".repeat(16),
    issued: "",
    expires: new Date(+now + 3e11).toISOString(),
    holders: proxies.length,
  };
  const items = [...new Set(proxies.map((p) => p.identity))].map((identity) => ({
    identity,
    name: identity.split("/sa/")[1],
    namespace: "default",
    holders: proxies
      .filter((p) => p.identity === identity)
      .map((p) => ({
        workload: p.workload,
        address: p.address,
        state: p.state,
        issuer: root.subject,
        root: root.sha256,
        serial: "1234567890abcdef",
        issued: new Date(now - 4 * 3600e3).toISOString(),
        expires: p.certificate_expires,
        renewals: 1,
      })),
  }));
  return { now: now.toISOString(), range: "5m", roots: [root], items };
}

const perSecond = 8; // requests that a tap shows
let number = 0;

export function event(mesh, now = new Date()) {
  const [source, service, , more = {}] = mesh.edges[number++ % mesh.edges.length];
  const status = number % 23 === 0 ? 503 : 200;
  return {
    time: now.toISOString(),
    source,
    source_workload: `${source}-1`,
    service,
    workload: `${service}-1`,
    protocol: "http/1",
    security: more.security ?? "mtls",
    outcome: status === 200 ? "success" : "app-failure",
    status,
    method: "GET",
    path: `/items${mesh.text ?? ""}?n=${number}`,
    first_byte_s: 0.002,
    duration_s: 0.002 * wave(number, +now),
    bytes_sent: 200,
    bytes_received: 1800,
    host: "",
  };
}

// answer is what a path of the API gives; a stream, its next event.
export function answer(mesh, path, query = new URLSearchParams()) {
  const range = query.get("range") ?? "5m";
  switch (path) {
    case "/api/v1/stream":
      return table(mesh, range);
    case "/api/v1/tap":
      return event(mesh);
    case "/api/v1/series":
      return series(range);
    case "/api/v1/heatmap":
      return heatmap(range);
    case "/api/v1/routes":
      return routes(query.get("service"), mesh.text);
    case "/api/v1/identities":
      return identities(mesh);
  }
  return null;
}

const together = 1000; // ms; see together_ms in dashboard/openapi.yaml
const data = (value) => `data: ${JSON.stringify(value)}\n\n`;

// texts are what a stream sends next, and how often.
const streams = {
  "/api/v1/stream": {
    every: 1000,
    text: (next, mesh, n) =>
      n % Math.min(5, Math.max(1, Math.floor(mesh.edges.length / 40))) ? "event: beat\ndata: {}\n\n" : data(next()),
  },
  "/api/v1/tap": {
    every: together,
    text: (next) => Array.from({ length: (perSecond * together) / 1000 }, () => data(next())).join(""),
  },
};

async function serve(mesh, request, response) {
  const url = new URL(request.url, "http://localhost");
  if (url.pathname.startsWith("/api/")) {
    const stream = streams[url.pathname];
    const next = () => answer(mesh, url.pathname, url.searchParams);
    response.setHeader("Content-Type", stream ? "text/event-stream" : "application/json");
    if (!stream) return response.end(JSON.stringify(next()));
    let n = 0;
    const send = () => response.write(stream.text(next, mesh, n++));
    send();
    const timer = setInterval(send, stream.every);
    return response.on("close", () => clearInterval(timer));
  }
  const file = url.pathname.startsWith("/assets/") ? url.pathname.slice(8) : "index.html";
  response.setHeader("Content-Type", types[extname(file)] ?? "text/plain");
  const body = await readFile(fileURLToPath(new URL(file, ui)));
  response.end(file === "index.html" ? String(body).replace("<!-- parts -->", await partsOf()) : body);
}

// partsOf does what dashboard/page.go does: it names every module.
async function partsOf() {
  const files = await readdir(ui, { recursive: true });
  const modules = files.filter((f) => /\.m?js$/.test(f) && !/boot|uplot/.test(f));
  return modules.map((f) => `<link rel="part" href="/assets/${f}" />`).join("");
}

// listen serves a made-up mesh on loopback, and returns the server.
export const listen = (mesh, port) =>
  createServer((request, response) => serve(mesh, request, response).catch((error) => response.destroy(error))).listen(
    port,
    "127.0.0.1",
  );

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const option = (name, usual) => Number(process.argv[process.argv.indexOf(`--${name}`) + 1] || 0) || usual;
  const mesh = process.argv.includes("--edges") ? large(option("edges", 200)) : shop;
  const port = option("port", 4190);
  listen(mesh, port);
  console.log(`http://127.0.0.1:${port}/ shows ${mesh.edges.length} made-up edges`);
}

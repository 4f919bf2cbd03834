// What deserves a look now, found in the tables: the slow thing in ten seconds.

import { isOpen } from "./parts/basics.js";
import { latency, percent, plain, success } from "./format.js";
import { to, toEdge, toService } from "./route.js";

const slowFactor = 3; // times the median of the other replicas
const slowLeast = 0.002; // s; below that nobody waits
const fewest = 20; // requests, for shares to mean something
const soon = 3600e3; // ms before a certificate's end

// withSlow marks the replicas that are much slower than their siblings.
export function withSlow(replicas) {
  return replicas.map((r) => {
    const others = replicas
      .filter((o) => o !== r && o.service === r.service)
      .map(speed)
      .filter((v) => v > 0);
    if (!others.length || !(speed(r) > slowLeast)) return r;
    const usual = others.sort((a, b) => a - b)[Math.floor((others.length - 1) / 2)];
    if (speed(r) < slowFactor * usual) return r;
    return { ...r, slow: `answers in ${plain(latency(speed(r)))}, its siblings in ${plain(latency(usual))}` };
  });
}

// A replica that gets few requests has an estimate that fades; what it did is surer.
const speed = (r) => r.p50_s ?? r.ewma_s;

// findings are {bad, subject, text, href}, the worst first.
export function findings({ now, overview, services, edges, replicas, proxies }) {
  const found = [];
  const add = (bad, subject, text, href) => found.push({ bad, subject, text, href });
  for (const s of services) {
    if (s.requests >= fewest && s.success < 0.99)
      add(true, s.name, `${plain(success(s.success))} of its requests succeed`, toService(s.name));
    if (s.ready < s.replicas)
      add(!s.ready, s.name, `${s.ready} of ${s.replicas} replicas are ready`, toService(s.name));
  }
  for (const e of edges) {
    if (e.requests >= fewest && e.success < 0.99) {
      add(true, `${e.source} → ${e.destination}`, `${plain(success(e.success))} of the calls succeed`, toEdge(e));
    }
    if (e.requests > 0 && isOpen(e) && e.destination_kind === "service") {
      add(false, `${e.source} → ${e.destination}`, "is plaintext: the caller is outside of the mesh", toEdge(e));
    }
  }
  for (const r of withSlow(replicas)) {
    if (r.slow)
      add(
        false,
        r.workload,
        `${r.slow}; it gets ${plain(percent(r.share))} of the requests`,
        toService(r.service, { replica: r.workload }),
      );
  }
  for (const p of proxies) {
    if (p.state === "lost")
      add(true, p.workload, "its proxy is gone without saying so", to("proxies", [], { name: p.workload }));
  }
  const expiry = overview?.certificates?.soonest_expiry;
  if (expiry && new Date(expiry) - new Date(now) < soon) {
    add(true, overview.certificates.soonest_workload, "its certificate ends within the hour", to("identities"));
  }
  return found.sort((a, b) => b.bad - a.bad);
}

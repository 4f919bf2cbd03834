// Lines over time, drawn by uPlot (a script of its own, loaded before this).

import { html, useEffect, useLayoutEffect, useRef, useState } from "../html.js";
import { clock, plain } from "../format.js";
import { color, useScheme } from "./scheme.js";

const height = 168;
export const right = 20; // px
export const axisWidth = 58; // px left of every chart, so that they line up

const seconds = { "5m": 300, "15m": 900, "1h": 3600 };

// span is what time axis a range has: always whole, so that missing data shows.
export function span(answer) {
  const end = new Date(answer.now) / 1000;
  return [end - (seconds[answer.range] ?? 300), end];
}

// Chart shows lines {label, values, color, fill} over times t. `show` makes a
// figure of a value; `top` is the least height of the scale, `bottom` its floor.
export function Chart({ label, t, lines, within, show, tick = (v) => plain(show(v)), top, bottom = 0, most }) {
  const host = useRef(null);
  const plot = useRef(null);
  const [at, setAt] = useState(null);
  const scheme = useScheme();
  const limits = useRef({});
  limits.current = { within, top, bottom, most };

  useLayoutEffect(() => {
    const u = new globalThis.uPlot(
      options(lines, tick, limits, setAt, host.current.clientWidth),
      [[], ...lines.map(() => [])],
      host.current,
    );
    plot.current = u;
    const resize = new ResizeObserver(() => u.setSize({ width: host.current.clientWidth, height }));
    resize.observe(host.current);
    return () => {
      resize.disconnect();
      u.destroy();
    };
  }, [scheme, lines.length]);
  useEffect(() => plot.current.setData([t, ...lines.map((l) => l.values)]), [t, scheme]);

  const index = at === null || at >= t.length ? lastKnown(lines) : at;
  return html`<figure class="chart">
    <figcaption>
      <b>${label}</b>
      ${lines.map(
        (l) =>
          html`<span key=${l.label} class="key"
            ><i class=${`swatch ${l.color}`}></i>${l.label} <b>${plain(show(l.values[index]))}</b></span
          >`,
      )}
      <time>${at !== null && t[index] ? clock(t[index] * 1000) : ""}</time>
    </figcaption>
    <div
      class="plot"
      ref=${host}
      role="img"
      aria-label=${`${label} over time; now ${lines.map((l) => `${l.label} ${plain(show(l.values[index]))}`).join(", ")}`}
    ></div>
  </figure>`;
}

function lastKnown(lines) {
  for (let i = lines[0].values.length - 1; i >= 0; i--) {
    if (lines.some((l) => l.values[i] !== null)) return i;
  }
  return -1;
}

function options(lines, tick, limits, setAt, width) {
  const axis = {
    stroke: color("muted"),
    grid: { stroke: color("line"), width: 1 },
    ticks: { show: false },
    font: "11px system-ui, sans-serif",
  };
  return {
    width,
    height,
    padding: [10, right, 0, 0],
    legend: { show: false },
    cursor: { sync: { key: "time" }, drag: { x: false, y: false }, y: false, points: { size: 6 } },
    scales: {
      x: { time: true, range: () => limits.current.within },
      y: {
        range: (_, low, high) => {
          const { top, bottom, most } = limits.current;
          const floor = bottom === "near" ? Math.max(0, Math.min(0.98, low ?? 1) - 0.01) : bottom;
          return [floor, most ?? Math.max(top ?? 0, (high ?? 0) * 1.08)];
        },
      },
    },
    axes: [
      {
        ...axis,
        size: 26,
        space: (_, __, ___, ____, room) => (room < 420 ? 42 : 70),
        values: (_, splits) => splits.map((s) => clock(s * 1000, s % 60 ? "seconds" : "minutes")),
      },
      { ...axis, size: axisWidth, space: 34, values: (_, splits) => splits.map(tick) },
    ],
    series: [
      {},
      ...lines.map((l) => ({
        stroke: color(l.color),
        fill: l.fill ? color(`${l.color}-soft`) : undefined,
        width: 1.6,
        points: { show: (u, i) => u.data[i].filter((v) => v !== null).length < 3, size: 5, fill: color(l.color) },
        spanGaps: false,
      })),
    ],
    hooks: { setCursor: [(u) => setAt(u.cursor.idx ?? null)] },
  };
}

// The latency heat map: each column is a slice of time, each row a span of
// latency, each colour how many requests fell there. It shows what percentiles
// hide: two humps, a slow few, a sudden shift.

import { html, useLayoutEffect, useRef, useState } from "../html.js";
import { clock, count, latency, plain } from "../format.js";
import { axisWidth, right as margin, span } from "./chart.js";
import { color, ramp, useScheme } from "./scheme.js";

const height = 220;
const below = 26; // px for the times

export function Heatmap({ answer }) {
  const canvas = useRef(null);
  const [spot, setSpot] = useState(null);
  const [width, setWidth] = useState(0);
  const scheme = useScheme();
  useLayoutEffect(() => {
    const resize = new ResizeObserver(([entry]) => setWidth(Math.floor(entry.contentRect.width)));
    resize.observe(canvas.current.parentElement);
    return () => resize.disconnect();
  }, []);
  const shape = shapeOf(answer, width);
  useLayoutEffect(() => {
    if (width) draw(canvas.current, answer, shape, ramp(scheme));
  }, [answer, width, scheme]);

  const point = (event) => {
    const box = canvas.current.getBoundingClientRect();
    setSpot(cellAt(answer, shape, event.clientX - box.left, event.clientY - box.top));
  };
  return html`<figure class="chart heatmap">
    <figcaption>
      <b>Latency of every request</b>
      <span class="key">few <i class="ramp"></i> many (up to ${plain(count(shape.most))} in ${answer.step_s} s)</span>
      <time
        >${spot && `${clock(spot.time * 1000)}: ${plain(count(spot.n))} of ${plain(latency(spot.from))} to ${plain(latency(spot.to))}`}</time
      >
    </figcaption>
    <div class="plot">
      <canvas
        ref=${canvas}
        role="img"
        aria-label=${describe(answer, shape)}
        onPointerMove=${point}
        onPointerLeave=${() => setSpot(null)}
      ></canvas>
    </div>
  </figure>`;
}

// shapeOf finds the rows that hold anything, with one more on either side.
function shapeOf(answer, width) {
  let [low, high, most] = [Infinity, -1, 0];
  for (const column of answer.counts) {
    column?.forEach((n, row) => {
      if (!n) return;
      low = Math.min(low, row);
      high = Math.max(high, row);
      most = Math.max(most, n);
    });
  }
  const rows = answer.bounds_s.length - 1;
  low = high < 0 ? 0 : Math.max(0, low - 1);
  high = high < 0 ? rows - 1 : Math.min(rows - 1, high + 1);
  const [from, to] = span(answer);
  return {
    low,
    high,
    most,
    from,
    to,
    x: (t) => axisWidth + ((t - from) / (to - from)) * (width - axisWidth - margin),
    y: (row) => 6 + ((high + 1 - row) / (high + 1 - low)) * (height - below - 6),
    width,
  };
}

function draw(canvas, answer, shape, colors) {
  const scale = devicePixelRatio || 1;
  canvas.width = shape.width * scale;
  canvas.height = height * scale;
  canvas.style.width = `${shape.width}px`;
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  pen.fillStyle = color("soft");
  pen.fillRect(
    axisWidth,
    shape.y(shape.high + 1),
    shape.width - axisWidth - margin,
    shape.y(shape.low) - shape.y(shape.high + 1),
  );
  const full = Math.log1p(shape.most);
  answer.counts.forEach((column, i) => {
    if (!column) return;
    const left = Math.max(axisWidth, shape.x(answer.t[i]));
    const right = Math.min(shape.x(answer.t[i] + answer.step_s), shape.width - margin);
    if (right <= left) return;
    for (let row = shape.low; row <= shape.high; row++) {
      if (!column[row]) continue;
      pen.fillStyle = colors[Math.round((Math.log1p(column[row]) / full) * (colors.length - 1))];
      const top = Math.floor(shape.y(row + 1));
      pen.fillRect(Math.floor(left), top, Math.ceil(right) - Math.floor(left), Math.ceil(shape.y(row)) - top);
    }
  });
  label(pen, answer, shape);
}

// label writes round latencies on the left and times below.
function label(pen, answer, shape) {
  pen.fillStyle = color("muted");
  pen.font = "11px system-ui, sans-serif";
  pen.textBaseline = "middle";
  pen.textAlign = "right";
  let last = Infinity;
  for (const value of [1, 2, 5]
    .flatMap((n) => [1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1, 10].map((d) => n * d))
    .sort((a, b) => a - b)) {
    if (value < answer.bounds_s[shape.low] * 0.97) continue;
    const row = answer.bounds_s.findIndex((b) => b >= value * 0.97);
    if (row < shape.low || row > shape.high + 1) continue;
    const y = shape.y(row);
    if (last - y < 26) continue;
    last = y;
    pen.fillText(plain(latency(value)), axisWidth - 8, Math.max(10, y));
  }
  pen.textAlign = "center";
  pen.textBaseline = "top";
  const step = [10, 30, 60, 120, 300, 600].find((s) => (s / (shape.to - shape.from)) * shape.width > 80) ?? 600;
  for (let t = Math.ceil(shape.from / step) * step; t <= shape.to; t += step) {
    pen.fillText(clock(t * 1000, t % 60 ? "seconds" : "minutes"), shape.x(t), height - 17);
  }
}

function cellAt(answer, shape, x, y) {
  const time = shape.from + ((x - axisWidth) / (shape.width - axisWidth - margin)) * (shape.to - shape.from);
  const i = answer.t.findLastIndex((t) => t <= time);
  const row = Math.floor(shape.high + 1 - ((y - 6) / (height - below - 6)) * (shape.high + 1 - shape.low));
  if (i < 0 || time >= answer.t[i] + answer.step_s || row < shape.low || row > shape.high) return null;
  return {
    time: answer.t[i],
    n: answer.counts[i]?.[row] ?? 0,
    from: answer.bounds_s[row],
    to: answer.bounds_s[row + 1],
  };
}

const describe = (answer, shape) =>
  shape.most
    ? `Heat map: requests took from ${plain(latency(answer.bounds_s[shape.low]))} to ${plain(latency(answer.bounds_s[shape.high + 1]))}`
    : "Heat map: no requests";

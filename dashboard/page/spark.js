// A line of the last minute's requests, on the scale of its own highest point.

const width = 118;
const height = 24;
const pad = 2;

export function drawSpark(svg, history) {
  const top = Math.max(1, ...history);
  const step = width / (history.length - 1);
  const points = history.map((n, i) => `${(i * step).toFixed(1)},${(height - pad - (n / top) * (height - 2 * pad)).toFixed(1)}`).join(" ");
  const [area, line] = svg.children;
  line.setAttribute("points", points);
  area.setAttribute("points", `0,${height} ${points} ${width},${height}`);
}

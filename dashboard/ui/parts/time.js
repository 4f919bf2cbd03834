// The charts of a service or of one edge: what happened when.

import { html, useMemo } from "../html.js";
import { latency, percent, rate } from "../format.js";
import { useAnswer } from "../stream.js";
import { Fault, Section } from "./basics.js";
import { Chart, span } from "./chart.js";
import { Heatmap } from "./heatmap.js";

// TimeCharts asks for the series of a subject: {service}, {service, replica}
// or {source, destination}.
export function TimeCharts({ subject, range }) {
  const question = { ...subject, range };
  const series = useAnswer("series", question);
  const heat = useAnswer("heatmap", question);
  const search = new URLSearchParams(question);
  return html`<${Section}
    id="time"
    title="Over time"
    note=${series.value?.from === "prometheus" ? "from Prometheus" : ""}
    raw=${`/api/v1/series?${search}`}
  >
    ${(series.error || heat.error) && html`<${Fault} error=${series.error || heat.error} />`}
    <div class=${`charts ${series.loading ? "loading" : ""}`}>
      ${
        series.value
          ? html`<${Lines} answer=${series.value} />`
          : html`<div class="placeholder" />
              <div class="placeholder" />
              <div class="placeholder wide" />`
      }
      ${heat.value ? html`<${Heatmap} answer=${heat.value} />` : html`<div class="placeholder wide" />`}
    </div>
  <//>`;
}

function Lines({ answer }) {
  const within = useMemo(() => span(answer), [answer]);
  const shared = { t: answer.t, within };
  return html`
    <${Chart}
      label="Requests"
      ...${shared}
      show=${rate}
      top=${1}
      lines=${[{ label: "per second", values: answer.rps, color: "accent", fill: true }]}
    />
    <${Chart}
      label="Success"
      ...${shared}
      show=${percent}
      tick=${(v) => `${Number((v * 100).toFixed(2))}\u2009%`}
      bottom="near"
      most=${1.0005}
      lines=${[{ label: "share", values: answer.success, color: "ok" }]}
    />
    <div class="wide">
      <${Chart}
        label="Latency"
        ...${shared}
        show=${latency}
        top=${0.001}
        lines=${[
          { label: "p50", values: answer.p50_s, color: "line1" },
          { label: "p95", values: answer.p95_s, color: "line2" },
          { label: "p99", values: answer.p99_s, color: "line3" },
        ]}
      />
    </div>
  `;
}

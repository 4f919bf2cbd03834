package main

import "encoding/json"

// object is JSON in the making.
type object map[string]any

// panel is one graph of the Grafana dashboard.
type panel struct {
	title, unit   string
	queries       []query
	height, width int
}

type query struct{ expr, legend string }

const (
	halfWidth = 12
	usual     = 8 // height
	// source is what the user chooses at import.
	source = "${datasource}"
)

var panels = []panel{
	{"Requests", "reqps", []query{{`sum by (service) (service:tulle_requests:rate1m{service=~"$service"})`, "{{service}}"}}, usual, halfWidth},
	{"Success", "percentunit", []query{{`service:tulle_success:ratio1m{service=~"$service"}`, "{{service}}"}}, usual, halfWidth},
	{"Latency", "s", []query{
		{`service:tulle_duration_seconds:p50_1m{service=~"$service"}`, "{{service}} p50"},
		{`service:tulle_duration_seconds:p95_1m{service=~"$service"}`, "{{service}} p95"},
		{`service:tulle_duration_seconds:p99_1m{service=~"$service"}`, "{{service}} p99"},
	}, usual, halfWidth},
	{"p99 by caller", "s", []query{{`edge:tulle_duration_seconds:p99_1m{service=~"$service"}`, "{{workload_service}} → {{service}}"}}, usual, halfWidth},
	{"Requests by caller", "reqps", []query{{`edge:tulle_requests:rate1m{service=~"$service"}`, "{{workload_service}} → {{service}}"}}, usual, halfWidth},
	{"Without mutual TLS", "reqps", []query{
		{`sum by (workload_service, service) (rate(tulle_requests_total{direction="outbound",security="plaintext",service=~"$service"}[1m]))`, "{{workload_service}} → {{service}}"},
	}, usual, halfWidth},
	{"Certificates end in", "s", []query{{`tulle_certificate_not_after_seconds - time()`, "{{workload}}"}}, usual, halfWidth},
	{"Proxies", "short", []query{{`tulle_control_proxies`, "{{state}}"}}, usual, halfWidth},
}

// grafana writes the dashboard, as Grafana 9 and later import it.
func grafana() []byte {
	list, x, y := []object{}, 0, 0
	for i, p := range panels {
		targets := []object{}
		for j, q := range p.queries {
			targets = append(targets, object{"expr": q.expr, "legendFormat": q.legend, "refId": string(rune('A' + j)), "datasource": object{"type": "prometheus", "uid": source}})
		}
		list = append(list, object{
			"id": i + 1, "type": "timeseries", "title": p.title, "targets": targets,
			"datasource":  object{"type": "prometheus", "uid": source},
			"gridPos":     object{"h": p.height, "w": p.width, "x": x, "y": y},
			"fieldConfig": object{"defaults": object{"unit": p.unit, "min": 0}, "overrides": []object{}},
			"options": object{
				"legend":  object{"showLegend": true, "displayMode": "list", "placement": "bottom", "calcs": []string{}},
				"tooltip": object{"mode": "multi", "sort": "desc"},
			},
		})
		if x += p.width; x >= 2*halfWidth {
			x, y = 0, y+p.height
		}
	}
	variables := []object{
		{"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
		{
			"name": "service", "label": "Service", "type": "query", "datasource": object{"type": "prometheus", "uid": source},
			"query": "label_values(service:tulle_requests:rate1m, service)", "refresh": 2, "multi": true, "includeAll": true, "allValue": ".*",
			"current": object{"text": "All", "value": "$__all"},
		},
	}
	dashboard := object{
		"title": "Tulle", "uid": "tulle", "tags": []string{"tulle"}, "schemaVersion": 37, "editable": true, "refresh": "15s", "timezone": "browser",
		"time": object{"from": "now-1h", "to": "now"}, "templating": object{"list": variables}, "panels": list,
	}
	text, err := json.MarshalIndent(dashboard, "", "  ")
	if err != nil {
		panic(err) // all of it is written above
	}
	return append(text, '\n')
}

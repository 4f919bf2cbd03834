// Prometheus writes what a Prometheus and a Grafana of one's own need to know
// of the mesh, next to itself:
//
//	rules.yml       recording rules and alerts
//	grafana.json    a dashboard; import it and choose the data source
//	prometheus.yml  how to scrape the control plane and every proxy
//
// Type after a change here: go run ./dashboard/prometheus dashboard/prometheus
package main

import (
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: go run ./dashboard/prometheus DIR")
		os.Exit(2)
	}
	for name, content := range files() {
		if err := os.WriteFile(filepath.Join(os.Args[1], name), content, 0o644); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

// files are what is written, by name.
func files() map[string][]byte {
	return map[string][]byte{"rules.yml": rules(), "grafana.json": grafana(), "prometheus.yml": []byte(scrape)}
}

// scrape asks the control plane of one host for where the proxies are.
const scrape = `# How to scrape a mesh on one host; made by go run ./dashboard/prometheus.
global:
  scrape_interval: 15s
rule_files:
  - rules.yml
scrape_configs:
  - job_name: tulle-control
    static_configs:
      - targets: ["127.0.0.1:4180"]
  - job_name: tulle-proxies
    http_sd_configs:
      - url: http://127.0.0.1:4180/api/v1/targets
        refresh_interval: 15s
`

package main

import (
	"fmt"
	"net/http"
	"regexp"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/client-go/kubernetes"
)

// admin serves health and figures.
func (p *control) admin() http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 2}))
	mux.HandleFunc("GET /live", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("live\n")) })
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) {
		switch {
		case !p.source.Ready():
			http.Error(w, "the cluster has not been read yet", http.StatusServiceUnavailable)
		case p.namespaces != nil && !p.namespaces.Ready():
			http.Error(w, "the namespaces have not been read yet", http.StatusServiceUnavailable)
		default:
			_, _ = w.Write([]byte("ready\n"))
		}
	})
	return mux
}

// Restartable init containers are on by default since this minor version of
// Kubernetes 1.
const nativeSince = 29

var leadingDigits = regexp.MustCompile(`^[0-9]+`)

// nativeSidecars tells whether the cluster knows restartable init containers.
func nativeSidecars(client kubernetes.Interface) (bool, error) {
	v, err := client.Discovery().ServerVersion()
	if err != nil {
		return false, fmt.Errorf("the API server's version: %w", err)
	}
	minor, err := strconv.Atoi(leadingDigits.FindString(v.Minor)) // "29+" with some vendors
	if err != nil {
		return false, fmt.Errorf("the API server's version %q.%q: no number", v.Major, v.Minor)
	}
	return v.Major != "1" || minor >= nativeSince, nil
}

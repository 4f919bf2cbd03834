package proxy

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// adminServer serves what may be read by anybody who can reach the workload:
// figures and health. Nothing can be changed through it.
func (p *Proxy) adminServer() *http.Server {
	registry := prometheus.NewRegistry()
	self := prometheus.Labels{"workload": p.config.Workload, "workload_service": p.config.Service}
	prometheus.WrapRegistererWith(self, registry).MustRegister(&collector{p})
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 2}))
	mux.HandleFunc("GET /live", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("live\n")) })
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) {
		if reason := p.unready(); reason != "" {
			http.Error(w, reason, http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ready\n"))
	})
	mux.HandleFunc("GET "+probePath, p.serveProbe)
	return &http.Server{
		Handler: mux, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: 60 * time.Second, MaxHeaderBytes: 8 << 10,
	}
}

// unready returns why the workload should not be called, "" if it may be.
func (p *Proxy) unready() string {
	switch {
	case p.draining():
		return "draining"
	case time.Now().After(p.notAfter()):
		return "the certificate has ended"
	}
	return ""
}

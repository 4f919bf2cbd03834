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
		switch {
		case p.draining():
			http.Error(w, "draining", http.StatusServiceUnavailable)
		case time.Now().After(p.notAfter()):
			http.Error(w, "the certificate has ended", http.StatusServiceUnavailable)
		default:
			_, _ = w.Write([]byte("ready\n"))
		}
	})
	mux.HandleFunc("GET "+probePath, p.serveProbe)
	return &http.Server{
		Handler: mux, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: 60 * time.Second, MaxHeaderBytes: 8 << 10,
	}
}

package dashboard

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
)

// HandlerConfig is what the JSON API and the page are made from.
type HandlerConfig struct {
	Collector *Collector // required

	// Inventory lists the workloads and services that the control plane knows;
	// nil: only those seen in traffic are shown. It is called about once a
	// second for each window that is watched, and must not block for long.
	Inventory func(ctx context.Context) (*tullev1.ListResponse, error)

	// Roots are the certificates that the mesh trusts; nil: not shown.
	Roots func() []*x509.Certificate

	// Hosts are names, besides localhost and loopback addresses, under which
	// the server may be asked for. Others are refused, so that no web page can
	// read the API by pointing its own name at this address (DNS rebinding).
	Hosts []string

	URL         string // where a browser finds the page, for `tulle dashboard`; "": nowhere
	Version     string
	TrustDomain string
}

// Validate reports what the HandlerConfig lacks.
func (c HandlerConfig) Validate() error {
	if c.Collector == nil {
		return errors.New("dashboard: HandlerConfig.Collector is required")
	}
	return nil
}

// handler serves the API and the page. It starts no goroutine.
type handler struct {
	config  HandlerConfig
	streams chan struct{} // a slot for each open stream

	mu     sync.Mutex // guards frames
	frames map[Window]*frame
}

// Handler returns the dashboard's HTTP handler. Use it with NewServer.
func Handler(config HandlerConfig) (http.Handler, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	page, err := newPage()
	if err != nil {
		return nil, err
	}
	h := &handler{config: config, streams: make(chan struct{}, maxStreams), frames: map[Window]*frame{}}
	mux := http.NewServeMux()
	for name, view := range map[string]func(*snapshot) any{
		"services":   func(s *snapshot) any { return s.services(s.flows()) },
		"edges":      func(s *snapshot) any { return s.edges(s.flows()) },
		"replicas":   func(s *snapshot) any { return s.replicas(s.flows()) },
		"proxies":    func(s *snapshot) any { return s.proxyRows() },
		"identities": func(s *snapshot) any { return s.identities(h.roots()) },
		"workloads":  func(s *snapshot) any { return s.workloads() },
	} {
		mux.HandleFunc("GET /api/v1/"+name, h.serveView(view))
	}
	mux.HandleFunc("GET /api/v1/about", h.serveAbout)
	mux.HandleFunc("GET /api/v1/stream", h.serveStream)
	mux.HandleFunc("GET /api/v1/tap", h.serveTap)
	mux.HandleFunc("HEAD /api/v1/stream", refuse) // it would never end
	mux.HandleFunc("HEAD /api/v1/tap", refuse)
	mux.HandleFunc("GET /api/v1/openapi.yaml", serveOpenAPI)
	mux.HandleFunc("/api/", refuse)
	mux.Handle("/", page)
	return guard(config.Hosts, mux), nil
}

// refuse answers what no view does.
func refuse(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", "GET")
		writeError(w, http.StatusMethodNotAllowed, "the API only answers GET")
		return
	}
	writeError(w, http.StatusNotFound, "no such view; there are services, edges, replicas, proxies, identities, workloads, about, stream and tap under /api/v1")
}

// Answer is what each view returns.
type Answer[T any] struct {
	Now   time.Time `json:"now"`
	Since string    `json:"since"` // the window: "start", or like "10s"
	Items []T       `json:"items"`
}

func (h *handler) serveView(view func(*snapshot) any) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		window, err := ParseWindow(r.URL.Query().Get("since"))
		if err != nil {
			writeError(w, http.StatusBadRequest, err.Error())
			return
		}
		s, err := h.snapshot(r.Context(), window)
		if err != nil {
			writeError(w, http.StatusServiceUnavailable, err.Error())
			return
		}
		items := view(s)
		if name := r.URL.Query().Get("name"); name != "" {
			items = named(items, name)
		}
		writeJSON(w, http.StatusOK, map[string]any{"now": s.now.UTC(), "since": window.String(), "items": items})
	}
}

func (h *handler) snapshot(ctx context.Context, window Window) (*snapshot, error) {
	var inventory *tullev1.ListResponse
	if h.config.Inventory != nil {
		var err error
		if inventory, err = h.config.Inventory(ctx); err != nil {
			return nil, fmt.Errorf("list workloads: %w", err)
		}
	}
	return h.config.Collector.snapshot(window, inventory), nil
}

func (h *handler) roots() []*x509.Certificate {
	if h.config.Roots == nil {
		return nil
	}
	return h.config.Roots()
}

// About tells what is running.
type About struct {
	Version     string `json:"version"`
	TrustDomain string `json:"trust_domain"`
	URL         string `json:"url"`     // of the page
	Started     string `json:"started"` // since when totals are counted
}

func (h *handler) serveAbout(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, h.about())
}

func (h *handler) about() About {
	return About{Version: h.config.Version, TrustDomain: h.config.TrustDomain, URL: h.config.URL, Started: stamp(h.config.Collector.began)}
}

func writeJSON(w http.ResponseWriter, status int, value any) {
	body, err := json.Marshal(value)
	if err != nil {
		status, body = http.StatusInternalServerError, []byte(`{"error":"the answer cannot be written as JSON"}`)
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // the client is gone
}

func writeError(w http.ResponseWriter, status int, message string) {
	writeJSON(w, status, map[string]string{"error": message})
}

// named leaves only the rows that the name is about.
func named(items any, name string) any {
	switch rows := items.(type) {
	case []Service:
		return only(rows, func(r Service) bool { return r.Name == name })
	case []Edge:
		return only(rows, func(r Edge) bool { return r.Source == name || r.Service == name })
	case []Replica:
		return only(rows, func(r Replica) bool { return r.Service == name || r.Workload == name })
	case []Proxy:
		return only(rows, func(r Proxy) bool { return r.Service == name || r.Workload == name })
	case []Workload:
		return only(rows, func(r Workload) bool { return r.Service == name || r.Replica == name })
	case []Identity:
		return only(rows, func(r Identity) bool {
			return r.Name == name || r.Identity == name || slices.ContainsFunc(r.Holders, func(h HolderView) bool { return h.Workload == name })
		})
	}
	return items
}

func only[T any](rows []T, keep func(T) bool) []T {
	return slices.DeleteFunc(rows, func(row T) bool { return !keep(row) })
}

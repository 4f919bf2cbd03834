package dashboard

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/mesh"
)

// HandlerConfig is what the JSON API and the page are made from.
type HandlerConfig struct {
	Collector *Collector // required

	// Inventory lists the workloads and services that the control plane knows;
	// nil: only those seen in traffic are shown. It is called about once a
	// second for each window that is watched, and must not block for long.
	Inventory func(ctx context.Context) (*tullev1.ListResponse, error)

	// Path tells the way from a client to a server, as they are called, names
	// without a namespace being of the one given; nil: nobody knows. Its errors are
	// for people.
	Path func(client, server, namespace string) (*mesh.Path, error)

	// Told tells of how many destinations this control plane has told each of the
	// proxies that are connected to it, all that is so now, by "IDENTITY@ADDRESS";
	// nil: nobody knows.
	Told func() map[string]int

	// Roots are the certificates that the mesh trusts; nil: not shown.
	Roots func() []*x509.Certificate

	// Hosts are names, besides localhost and loopback addresses, under which
	// the server may be asked for. Others are refused, so that no web page can
	// read the API by pointing its own name at this address (DNS rebinding).
	Hosts []string

	// Prometheus is the address of a server that scrapes the proxies, such as
	// http://127.0.0.1:9090: series and heat maps then come from there; "": from
	// the last hour, which the Collector keeps.
	Prometheus string

	URL         string // where a browser finds the page, for `tulle dashboard`; "": nowhere
	Version     string
	TrustDomain string
}

// Validate reports what the HandlerConfig lacks.
func (c HandlerConfig) Validate() error {
	if c.Collector == nil {
		return errors.New("dashboard: HandlerConfig.Collector is required")
	}
	if c.Prometheus != "" {
		return CheckPrometheus(c.Prometheus)
	}
	return nil
}

// Site is the dashboard: the API and the page. It is an http.Handler; use it
// with NewServer.
type Site struct {
	config  HandlerConfig
	handler http.Handler
	streams chan struct{} // a slot for each open stream
	archive *archive      // nil: the Collector's history

	mu     sync.Mutex // guards frames
	frames map[Window]*frame
}

// Handler returns the dashboard.
func Handler(config HandlerConfig) (*Site, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	page, err := newPage()
	if err != nil {
		return nil, err
	}
	h := &Site{config: config, streams: make(chan struct{}, maxStreams), frames: map[Window]*frame{}}
	if config.Prometheus != "" {
		h.archive = newArchive(config.Prometheus)
	}
	mux := http.NewServeMux()
	for name, view := range map[string]func(*tables) any{
		"services":  func(t *tables) any { return t.serviceRows() },
		"edges":     func(t *tables) any { return t.edgeRows() },
		"replicas":  func(t *tables) any { return t.replicaRows() },
		"proxies":   func(t *tables) any { return t.proxyRows() },
		"workloads": func(t *tables) any { return t.workloads() },
	} {
		mux.HandleFunc("GET /api/v1/"+name, h.serveView(view))
	}
	for name, serve := range map[string]http.HandlerFunc{
		"overview": h.serveOverview, "identities": h.serveIdentities, "series": h.serveSeries, "heatmap": h.serveHeatmap,
		"routes": h.serveRoutes, "path": h.servePath, "told": h.serveTold, "about": h.serveAbout, "targets": h.serveTargets, "stream": h.serveStream, "tap": h.serveTap,
		"openapi.yaml": serveOpenAPI,
	} {
		mux.HandleFunc("GET /api/v1/"+name, serve)
	}
	mux.HandleFunc("GET /metrics", h.serveMetrics)
	mux.HandleFunc("HEAD /api/v1/stream", refuse) // it would never end
	mux.HandleFunc("HEAD /api/v1/tap", refuse)
	mux.HandleFunc("/api/", refuse)
	mux.Handle("/", page)
	h.handler = guard(config.Hosts, mux)
	return h, nil
}

// ServeHTTP answers a request.
func (h *Site) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.handler.ServeHTTP(w, r) }

// observeEvery is how often the control plane is asked what there is, while
// nobody looks.
const observeEvery = 2 * time.Second

// Run keeps an eye on the mesh until ctx ends, so that changes are noticed
// while nobody looks, and writes the history down.
func (h *Site) Run(ctx context.Context) error {
	tick := time.NewTicker(observeEvery)
	defer tick.Stop()
	for {
		inventory, err := h.inventory(ctx)
		if err != nil {
			inventory = nil // the next look will tell
		}
		h.config.Collector.Observe(inventory, h.roots())
		h.config.Collector.save()
		select {
		case <-ctx.Done():
			return h.config.Collector.endSaving()
		case <-tick.C:
		}
	}
}

// refuse answers what no view does.
func refuse(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", "GET")
		writeError(w, http.StatusMethodNotAllowed, "the API only answers GET")
		return
	}
	writeError(w, http.StatusNotFound, "there is no such view; see /api/v1/openapi.yaml for what there is")
}

// Answer is what each table returns.
type Answer[T any] struct {
	Now   time.Time `json:"now"`
	Range string    `json:"range"` // as asked for: "5m", "start"
	Items []T       `json:"items"`
}

// question is what a request asks for.
type question struct {
	values url.Values
	window Window
}

// ask reads the query, which may have only the parameters named.
func ask(r *http.Request, names ...string) (q question, err error) {
	if q.values, err = url.ParseQuery(r.URL.RawQuery); err != nil {
		return q, errors.New("the part after ? cannot be read; write name=value&name=value")
	}
	for name, values := range q.values {
		if !slices.Contains(names, name) {
			return q, fmt.Errorf("%s: there is no such parameter here; there are: %s", cut(name, maxWord), strings.Join(names, ", "))
		}
		if len(values) > 1 {
			return q, fmt.Errorf("%s: give it once", name)
		}
	}
	q.window, err = ParseWindow(q.values.Get("range"))
	return q, err
}

func badRequest(w http.ResponseWriter, err error) { writeError(w, http.StatusBadRequest, err.Error()) }

func (h *Site) serveView(view func(*tables) any) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		q, err := ask(r, "range", "name")
		if err != nil {
			badRequest(w, err)
			return
		}
		t, ok := h.tables(w, r, q.window)
		if !ok {
			return
		}
		items := view(t)
		if name := q.values.Get("name"); name != "" {
			items = named(items, name)
		}
		writeJSON(w, http.StatusOK, map[string]any{"now": t.now.UTC(), "range": q.window.String(), "items": items})
	}
}

// tables adds up what the views are made from; where that fails it answers.
func (h *Site) tables(w http.ResponseWriter, r *http.Request, window Window) (*tables, bool) {
	s, err := h.snapshot(r.Context(), window)
	if err != nil {
		writeError(w, http.StatusServiceUnavailable, err.Error())
		return nil, false
	}
	return s.tables(), true
}

func (h *Site) snapshot(ctx context.Context, window Window) (*snapshot, error) {
	inventory, err := h.inventory(ctx)
	if err != nil {
		return nil, err
	}
	return h.config.Collector.snapshot(window, inventory), nil
}

func (h *Site) inventory(ctx context.Context) (*tullev1.ListResponse, error) {
	if h.config.Inventory == nil {
		return nil, nil
	}
	inventory, err := h.config.Inventory(ctx)
	if err != nil {
		return nil, fmt.Errorf("list workloads: %w", err)
	}
	return inventory, nil
}

func (h *Site) serveOverview(w http.ResponseWriter, r *http.Request) {
	q, err := ask(r, "range")
	if err != nil {
		badRequest(w, err)
		return
	}
	if t, ok := h.tables(w, r, q.window); ok {
		writeJSON(w, http.StatusOK, t.overview(t.serviceRows(), h.roots()))
	}
}

func (h *Site) serveIdentities(w http.ResponseWriter, r *http.Request) {
	q, err := ask(r, "name", "range")
	if err != nil {
		badRequest(w, err)
		return
	}
	s, err := h.snapshot(r.Context(), q.window)
	if err != nil {
		writeError(w, http.StatusServiceUnavailable, err.Error())
		return
	}
	items, roots := s.identities(h.roots())
	if name := q.values.Get("name"); name != "" {
		items = named(items, name).([]Identity)
	}
	writeJSON(w, http.StatusOK, Identities{Answer: Answer[Identity]{Now: s.now.UTC(), Range: q.window.String(), Items: items}, Roots: roots})
}

// serveSeries answers from the history, or from Prometheus if that was asked for.
func (h *Site) serveSeries(w http.ResponseWriter, r *http.Request) {
	of, window, ok := askTimeline(w, r)
	if !ok {
		return
	}
	if h.archive != nil {
		answerFrom(w, func() (Series, error) { return h.archive.series(r.Context(), of, window) })
		return
	}
	writeJSON(w, http.StatusOK, h.config.Collector.timeline(of, time.Duration(window), stepOf(window, mostPoints)).series(window))
}

func (h *Site) serveHeatmap(w http.ResponseWriter, r *http.Request) {
	of, window, ok := askTimeline(w, r)
	if !ok {
		return
	}
	if h.archive != nil {
		answerFrom(w, func() (Heatmap, error) { return h.archive.heatmap(r.Context(), of, window) })
		return
	}
	writeJSON(w, http.StatusOK, h.config.Collector.timeline(of, time.Duration(window), stepOf(window, mostColumns)).heatmap(window))
}

func answerFrom[T any](w http.ResponseWriter, ask func() (T, error)) {
	answer, err := ask()
	if err != nil {
		writeError(w, http.StatusBadGateway, err.Error())
		return
	}
	writeJSON(w, http.StatusOK, answer)
}

func askTimeline(w http.ResponseWriter, r *http.Request) (of subject, window Window, ok bool) {
	q, err := ask(r, "range", "service", "source", "destination", "replica")
	if err == nil && q.window == 0 {
		err = errors.New("range=start: only tables know that; the history reaches back 1h at most")
	}
	if err == nil {
		of, err = parseSubject(q.values)
	}
	if err != nil {
		badRequest(w, err)
		return of, 0, false
	}
	return of, q.window, true
}

func (h *Site) serveRoutes(w http.ResponseWriter, r *http.Request) {
	q, err := ask(r, "range", "service", "limit")
	service, limit := q.values.Get("service"), usualRoutes
	if s := q.values.Get("limit"); s != "" && err == nil {
		if limit, err = strconv.Atoi(s); err != nil || limit < 1 || limit > maxRoutes {
			err = fmt.Errorf("limit=%s: must be a number from 1 to %d", cut(s, maxWord), maxRoutes)
		}
	}
	if err == nil && (service == "" || len(service) > maxName) {
		err = errors.New("name the service: service=NAME")
	}
	if err != nil {
		badRequest(w, err)
		return
	}
	t, ok := h.tables(w, r, q.window)
	if !ok {
		return
	}
	rps := 0.0
	if s := t.services[service]; s != nil {
		rps = t.figures(s).RPS
	}
	answer := h.config.Collector.routes.of(service, t.now).answer(t.now, q.window, rps, limit)
	answer.Service = service
	writeJSON(w, http.StatusOK, answer)
}

func (h *Site) servePath(w http.ResponseWriter, r *http.Request) {
	q, err := ask(r, "client", "server", "namespace")
	client, server, namespace := q.values.Get("client"), q.values.Get("server"), q.values.Get("namespace")
	if err == nil && (client == "" || server == "" || max(len(client), len(server), len(namespace)) > maxName) {
		err = errors.New("name both: a client and a server")
	}
	if err != nil {
		badRequest(w, err)
		return
	}
	if h.config.Path == nil {
		writeError(w, http.StatusNotFound, "this control plane does not tell paths")
		return
	}
	path, err := h.config.Path(client, server, namespace)
	if err != nil {
		writeError(w, http.StatusNotFound, err.Error())
		return
	}
	writeJSON(w, http.StatusOK, path)
}

// Told is what one replica of the control plane has told the proxies.
type Told struct {
	Destinations map[string]int `json:"destinations"` // by "IDENTITY@ADDRESS"
}

func (h *Site) serveTold(w http.ResponseWriter, r *http.Request) {
	if _, err := ask(r); err != nil {
		badRequest(w, err)
		return
	}
	if h.config.Told == nil {
		writeError(w, http.StatusNotFound, "this control plane does not tell whom it has told what")
		return
	}
	writeJSON(w, http.StatusOK, Told{h.config.Told()})
}

func (h *Site) roots() []*x509.Certificate {
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
	SeriesFrom  string `json:"series_from"`
}

func (h *Site) serveAbout(w http.ResponseWriter, r *http.Request) {
	if _, err := ask(r); err != nil {
		badRequest(w, err)
		return
	}
	writeJSON(w, http.StatusOK, h.about())
}

func (h *Site) about() About {
	about := About{Version: h.config.Version, TrustDomain: h.config.TrustDomain, URL: h.config.URL, Started: stamp(h.config.Collector.began), SeriesFrom: fromHistory}
	if h.archive != nil {
		about.SeriesFrom = fromPrometheus
	}
	return about
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
		return only(rows, func(r Service) bool { return means(name, r.Name) })
	case []Edge:
		return only(rows, func(r Edge) bool { return means(name, r.Source, r.Destination) })
	case []Replica:
		return only(rows, func(r Replica) bool { return means(name, r.Service, r.Workload) })
	case []Proxy:
		return only(rows, func(r Proxy) bool { return means(name, r.Service, r.Workload) })
	case []Workload:
		return only(rows, func(r Workload) bool { return means(name, r.Service, r.Replica) })
	case []Identity:
		return only(rows, func(r Identity) bool {
			return means(name, r.Name, r.Identity) || slices.ContainsFunc(r.Holders, func(h HolderView) bool { return means(name, h.Workload, h.service) })
		})
	}
	return items
}

// means tells whether what was asked for is any of several names; "*.shop" is
// all in the namespace shop.
func means(asked string, names ...string) bool {
	if below, ok := strings.CutPrefix(asked, "*"); ok && strings.HasPrefix(below, ".") {
		return slices.ContainsFunc(names, func(name string) bool { return strings.HasSuffix(name, below) })
	}
	return slices.Contains(names, asked)
}

func only[T any](rows []T, keep func(T) bool) []T {
	return slices.DeleteFunc(rows, func(row T) bool { return !keep(row) })
}

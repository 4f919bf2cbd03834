package dashboard

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

const (
	maxStreams   = 64
	writeTimeout = 15 * time.Second
	pingEvery    = 10 * time.Second // on a tap with nothing to show, so that both ends notice a dead peer
)

// frame is one event of a stream, made once for all its clients. It holds whole
// tables, never differences: a client that misses some loses nothing, and one
// that resumes needs nothing older.
type frame struct {
	id   string
	unix int64
	lull time.Duration // until the next one
	data []byte
}

// lullAfter is how long a table stays: a large one costs more to send and to
// draw, and what it shows does not change faster.
func lullAfter(edges int) time.Duration {
	const edgesPerSecond = 40
	return time.Duration(min(max(edges/edgesPerSecond, 1), 5)) * time.Second
}

// Table is everything that the page shows.
type Table struct {
	Now      time.Time `json:"now"`
	Range    string    `json:"range"`
	About    About     `json:"about"`
	Overview Overview  `json:"overview"`
	Services []Service `json:"services"`
	Edges    []Edge    `json:"edges"`
	Replicas []Replica `json:"replicas"`
	Proxies  []Proxy   `json:"proxies"`
}

// frameAt returns the frame of the present second.
func (h *Site) frameAt(ctx context.Context, window Window) (*frame, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	unix := time.Now().Unix()
	if f := h.frames[window]; f != nil && f.unix == unix {
		return f, nil
	}
	s, err := h.snapshot(ctx, window)
	if err != nil {
		return nil, err
	}
	table := s.tables().table(h.about(), h.roots())
	data, err := json.Marshal(table)
	if err != nil {
		return nil, err
	}
	// The collector's beginning is part of the id: one from before a restart is never the present one.
	f := &frame{
		id: fmt.Sprintf("%x-%x", h.config.Collector.began.UnixNano(), unix), unix: unix,
		lull: lullAfter(len(table.Edges)), data: data,
	}
	for w, old := range h.frames {
		if old.unix < unix-1 {
			delete(h.frames, w) // nobody watches that window any more
		}
	}
	h.frames[window] = f
	return f, nil
}

func (t *tables) table(about About, roots []*x509.Certificate) Table {
	services := t.serviceRows()
	return Table{
		Now: t.now.UTC(), Range: t.window.String(), About: about, Overview: t.overview(services, roots),
		Services: services, Edges: t.edgeRows(), Replicas: t.replicaRows(), Proxies: t.proxyRows(),
	}
}

// serveStream sends the whole table now, and again each second, or, of a large
// mesh, each few; then an event "beat" says each second that all is well. A client
// that resumes with the id of the present frame is not sent that again.
func (h *Site) serveStream(w http.ResponseWriter, r *http.Request) {
	q, err := ask(r, "range")
	if err != nil {
		badRequest(w, err)
		return
	}
	events, done, ok := h.startEvents(w)
	if !ok {
		return
	}
	defer done()
	seen := r.Header.Get("Last-Event-ID")
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for rest := time.Duration(0); err == nil; rest -= time.Second {
		if rest > 0 {
			err = events.send("", "beat", []byte("{}"))
		} else if f, trouble := h.frameAt(r.Context(), q.window); trouble != nil {
			err = events.send("", "trouble", mustJSON(map[string]string{"error": trouble.Error()}))
		} else if f.id != seen {
			err, seen, rest = events.send(f.id, "", f.data), f.id, f.lull
		}
		select {
		case <-r.Context().Done():
			return
		case <-tick.C:
		}
	}
}

// serveTap sends exchanges as they end.
func (h *Site) serveTap(w http.ResponseWriter, r *http.Request) {
	filter, together, err := parseFilter(r)
	if err != nil {
		badRequest(w, err)
		return
	}
	reader, ok := h.config.Collector.taps.open(filter)
	if !ok {
		writeError(w, http.StatusServiceUnavailable, fmt.Sprintf("%d taps are open already; end one of them", maxTaps))
		return
	}
	defer h.config.Collector.taps.close(reader)
	events, done, ok := h.startEvents(w)
	if !ok {
		return
	}
	defer done()
	ping := time.NewTicker(pingEvery)
	defer ping.Stop()
	for err == nil {
		select {
		case <-r.Context().Done():
			return
		case e := <-reader.events:
			events.add("", "", mustJSON(e))
			err = events.flushWith(r.Context(), reader.events, together)
		case <-ping.C:
			err = events.comment("still here")
		}
	}
}

// longestTogether is how long an event may wait for others.
const longestTogether = time.Second

// parseFilter also returns for how long events may wait to be sent together.
func parseFilter(r *http.Request) (Filter, time.Duration, error) {
	question, err := ask(r, "service", "client", "method", "path", "status", "min_ms", "max", "together_ms")
	if err != nil {
		return Filter{}, 0, err
	}
	q := question.values
	f := Filter{
		Service: q.Get("service"), Client: q.Get("client"), Method: q.Get("method"), PathPrefix: q.Get("path"), Status: q.Get("status"),
	}
	if f.SlowerThan, err = milliseconds(q, "min_ms", 1e9*time.Millisecond); err != nil {
		return f, 0, err
	}
	together, err := milliseconds(q, "together_ms", longestTogether)
	if err != nil {
		return f, 0, err
	}
	if s := q.Get("max"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			return f, 0, fmt.Errorf("max=%s: must be a number of events per second", cut(s, maxWord))
		}
		f.MaxRate = n
	}
	return f, together, f.Validate()
}

// milliseconds reads a parameter; 0 if it is not there.
func milliseconds(q url.Values, name string, most time.Duration) (time.Duration, error) {
	s := q.Get(name)
	if s == "" {
		return 0, nil
	}
	ms, err := strconv.ParseFloat(s, 64)
	if limit := float64(most / time.Millisecond); err != nil || !(ms >= 0 && ms <= limit) {
		return 0, fmt.Errorf("%s=%s: must be a number of milliseconds, at most %.0f", name, cut(s, maxWord), limit)
	}
	return time.Duration(ms * float64(time.Millisecond)), nil
}

// events writes server-sent events; each write has its own deadline, so that
// a client that does not read is cut off.
type events struct {
	w       http.ResponseWriter
	control *http.ResponseController
	buffer  bytes.Buffer
	flushed time.Time // by flushWith
}

// startEvents answers with the head of an event stream. The caller calls done
// at its end.
func (h *Site) startEvents(w http.ResponseWriter) (e *events, done func(), ok bool) {
	select {
	case h.streams <- struct{}{}:
	default:
		writeError(w, http.StatusServiceUnavailable, fmt.Sprintf("%d streams are open already; close some of them", maxStreams))
		return nil, nil, false
	}
	e = &events{w: w, control: http.NewResponseController(w)}
	_ = e.control.SetReadDeadline(time.Time{}) // else the server's ReadTimeout ends the request; not all writers support it
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	if e.comment("tulle") != nil {
		<-h.streams
		return nil, nil, false
	}
	return e, func() { <-h.streams }, true
}

func (e *events) send(id, event string, data []byte) error {
	e.add(id, event, data)
	return e.flush()
}

// flushWith sends what was added: at once, if nothing was sent for so long; else,
// when that is over, with all that has come until then.
func (e *events) flushWith(ctx context.Context, more <-chan Event, together time.Duration) error {
	const most = 64 << 10 // bytes
	if wait := time.Until(e.flushed.Add(together)); wait > 0 {
		due := time.NewTimer(wait)
		defer due.Stop()
		for over := false; !over && e.buffer.Len() < most; {
			select {
			case event := <-more:
				e.add("", "", mustJSON(event))
			case <-due.C:
				over = true
			case <-ctx.Done():
				over = true
			}
		}
	}
	e.flushed = time.Now()
	return e.flush()
}

// add appends an event to what is sent next.
func (e *events) add(id, event string, data []byte) {
	if id != "" {
		fmt.Fprintf(&e.buffer, "id: %s\n", id)
	}
	if event != "" {
		fmt.Fprintf(&e.buffer, "event: %s\n", event)
	}
	fmt.Fprintf(&e.buffer, "data: %s\n\n", data) // JSON has no line break in it
}

func (e *events) comment(text string) error {
	fmt.Fprintf(&e.buffer, ": %s\n\n", text)
	return e.flush()
}

func (e *events) flush() error {
	_ = e.control.SetWriteDeadline(time.Now().Add(writeTimeout)) // not all writers support it
	_, err := e.w.Write(e.buffer.Bytes())
	e.buffer.Reset()
	if err != nil {
		return err
	}
	return e.control.Flush()
}

// mustJSON is for values that always have a JSON form.
func mustJSON(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return data
}

package discovery

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/mesh"
)

// defaultWatchLimit is far above what a workload calls in the time for which
// its proxy remembers a destination.
const defaultWatchLimit = 4096

// ServerConfig is what NewServer needs.
type ServerConfig struct {
	State *State
	// Caller names who a watch is counted for; nil: all callers are one.
	Caller func(context.Context) string
	// Place tells where a caller is, PeerID who; nil: nobody knows. Both are
	// asked only about what a cluster knows.
	Place  func(context.Context) Place
	PeerID func(context.Context) (mesh.ID, bool)
	// WatchLimit bounds what one caller watches, streams and addresses taken
	// together; 0: 4096.
	WatchLimit int
	Log        *slog.Logger // nil: slog.Default()
}

// Server answers the proxies; it implements tullev1.DiscoveryServer.
type Server struct {
	tullev1.UnimplementedDiscoveryServer
	config   ServerConfig
	revision atomic.Uint64 // of the last message

	mu      sync.Mutex
	watched map[string]int // streams and addresses, by caller
	told    map[string]int // addresses of which a caller knows what is so now
}

// NewServer returns a Server.
func NewServer(config ServerConfig) *Server {
	if config.Caller == nil {
		config.Caller = func(context.Context) string { return "" }
	}
	if config.Place == nil {
		config.Place = func(context.Context) Place { return Place{} }
	}
	if config.PeerID == nil {
		config.PeerID = func(context.Context) (mesh.ID, bool) { return mesh.ID{}, false }
	}
	if config.WatchLimit == 0 {
		config.WatchLimit = defaultWatchLimit
	}
	if config.Log == nil {
		config.Log = slog.Default()
	}
	return &Server{config: config, watched: make(map[string]int), told: make(map[string]int)}
}

// Watch sends what is behind each address that the caller has added: whole, at
// once and after each change.
func (s *Server) Watch(stream grpc.BidiStreamingServer[tullev1.WatchRequest, tullev1.Destination]) error {
	caller := s.config.Caller(stream.Context())
	ctx, end := context.WithCancelCause(stream.Context())
	requests := make(chan *tullev1.WatchRequest)
	go func() { end(receive(ctx, stream, requests)) }() // ends with the stream, just after this call
	err := s.follow(ctx, caller, requests, stream.Send)
	switch {
	case errors.Is(err, io.EOF): // the caller has said that it is done
		return nil
	case status.Code(err) == codes.ResourceExhausted:
		s.config.Log.Warn("refused a watch", "caller", caller, "reason", err)
	}
	return err
}

// receive hands over the caller's requests and returns what ended them.
func receive(ctx context.Context, stream grpc.BidiStreamingServer[tullev1.WatchRequest, tullev1.Destination], requests chan<- *tullev1.WatchRequest) error {
	for {
		request, err := stream.Recv()
		if err != nil {
			return err
		}
		select {
		case requests <- request:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// follow does what requests ask for, and calls send with each new Destination,
// until ctx ends; it returns why. While send waits for a caller that reads slowly
// nothing is queued: the next pass sends the newest there is then.
func (s *Server) follow(ctx context.Context, caller string, requests <-chan *tullev1.WatchRequest, send func(*tullev1.Destination) error) error {
	w := &watch{server: s, caller: caller, addresses: make(map[string]*watched)}
	if !s.enter(caller) {
		return s.tooMany()
	}
	defer func() {
		w.tell(0)
		s.leave(caller, 1+len(w.addresses))
	}()
	for {
		snapshot, changed := s.config.State.Watch()
		// A proxy may be faster than the news of where its pod is.
		w.place = s.config.Place(ctx)
		if err := w.send(snapshot, send); err != nil {
			return err
		}
		select {
		case <-changed:
		case request := <-requests:
			if err := w.change(request); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// watch is one stream's; only its own goroutine uses it.
type watch struct {
	server    *Server
	caller    string
	place     Place
	addresses map[string]*watched // by the spelling in which they were added
	told      int                 // of them, as the server counts
}

// watched is one address of a watch and what its watcher knows.
type watched struct {
	addr netip.AddrPort
	sent bool // else nothing is known, and match is zero
	last Match
}

// change does what the watcher asks for. What it can't do ends the watch.
func (w *watch) change(request *tullev1.WatchRequest) error {
	for _, name := range request.GetDrop() {
		if w.addresses[name] != nil {
			delete(w.addresses, name)
			w.server.leave(w.caller, 1)
		}
	}
	for _, name := range request.GetAdd() {
		if known := w.addresses[name]; known != nil {
			known.sent = false
			continue
		}
		addr, err := ParseAddress(name)
		if err != nil {
			return status.Error(codes.InvalidArgument, err.Error())
		}
		if !w.server.enter(w.caller) {
			return w.server.tooMany()
		}
		w.addresses[name] = &watched{addr: addr}
	}
	return nil
}

// send calls send for each address of which the watcher does not know what
// snapshot says.
func (w *watch) send(snapshot *Snapshot, send func(*tullev1.Destination) error) error {
	for name, a := range w.addresses {
		// An unchanged service keeps its pointer: most changes end here, and
		// 10,000 watched addresses cost as many lookups.
		match := snapshot.Match(a.addr).From(w.place)
		if a.sent && match == a.last {
			continue
		}
		d := match.Destination()
		known := a.sent && proto.Equal(d, a.last.Destination())
		a.sent, a.last = true, match
		if known {
			continue
		}
		d.Address, d.Revision = name, w.server.revision.Add(1)
		w.tell(0) // who does not read holds up the rest
		if err := send(d); err != nil {
			return err
		}
	}
	w.tell(len(w.addresses))
	return nil
}

// tell notes how many addresses the watcher knows all about.
func (w *watch) tell(n int) {
	if n == w.told {
		return
	}
	s := w.server
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.told[w.caller] += n - w.told; s.told[w.caller] == 0 {
		delete(s.told, w.caller)
	}
	w.told = n
}

// Told returns how many addresses each caller has been told of as they are now,
// by the names that ServerConfig.Caller gives. Of a caller that does not read
// what it is sent, none counts.
func (s *Server) Told() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.told)
}

func (s *Server) tooMany() error {
	return status.Errorf(codes.ResourceExhausted, "%d addresses are watched already", s.config.WatchLimit)
}

func (s *Server) enter(caller string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watched[caller] >= s.config.WatchLimit {
		return false
	}
	s.watched[caller]++
	return true
}

func (s *Server) leave(caller string, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watched[caller] -= n; s.watched[caller] == 0 {
		delete(s.watched, caller)
	}
}

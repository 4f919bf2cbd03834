package discovery

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
)

// defaultWatchLimit is far above what a workload calls in the time for which
// its proxy remembers a destination.
const defaultWatchLimit = 4096

// ServerConfig is what NewServer needs.
type ServerConfig struct {
	State *State
	// Caller names who a watch is counted for; nil: all callers are one.
	Caller func(context.Context) string
	// WatchLimit bounds the watches of one caller; 0: 4096.
	WatchLimit int
	Log        *slog.Logger // nil: slog.Default()
}

// Server answers the proxies; it implements tullev1.DiscoveryServer.
type Server struct {
	tullev1.UnimplementedDiscoveryServer
	config   ServerConfig
	revision atomic.Uint64 // of the last message

	mu      sync.Mutex
	watches map[string]int // by caller
}

// NewServer returns a Server.
func NewServer(config ServerConfig) *Server {
	if config.Caller == nil {
		config.Caller = func(context.Context) string { return "" }
	}
	if config.WatchLimit == 0 {
		config.WatchLimit = defaultWatchLimit
	}
	if config.Log == nil {
		config.Log = slog.Default()
	}
	return &Server{config: config, watches: make(map[string]int)}
}

// Watch sends what is behind an address, whole, at once and after each change.
// A caller that reads slowly skips changes and never the newest one.
func (s *Server) Watch(req *tullev1.WatchRequest, stream grpc.ServerStreamingServer[tullev1.Destination]) error {
	addr, err := ParseAddress(req.GetAddress())
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	ctx := stream.Context()
	caller := s.config.Caller(ctx)
	if !s.enter(caller) {
		s.config.Log.Warn("refused a watch", "caller", caller, "address", addr, "limit", s.config.WatchLimit)
		return status.Errorf(codes.ResourceExhausted, "%d addresses are watched already", s.config.WatchLimit)
	}
	defer s.leave(caller)
	return s.follow(ctx, addr, stream.Send)
}

// follow calls send with each new Destination of addr until ctx ends.
func (s *Server) follow(ctx context.Context, addr netip.AddrPort, send func(*tullev1.Destination) error) error {
	var last Match
	var sent *tullev1.Destination
	for {
		snapshot, changed := s.config.State.Watch()
		// An unchanged service keeps its pointer: most changes end here, and
		// 10,000 watches cost as many lookups.
		if match := snapshot.Match(addr); sent == nil || match != last {
			last = match
			d := match.Destination()
			d.Revision = sent.GetRevision()
			if sent == nil || !proto.Equal(d, sent) {
				d.Revision = s.revision.Add(1)
				if err := send(d); err != nil {
					return err
				}
				sent = d
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
}

func (s *Server) enter(caller string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watches[caller] >= s.config.WatchLimit {
		return false
	}
	s.watches[caller]++
	return true
}

func (s *Server) leave(caller string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watches[caller]--; s.watches[caller] == 0 {
		delete(s.watches, caller)
	}
}

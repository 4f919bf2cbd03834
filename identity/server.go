package identity

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/mesh"
)

// Rates of Certify. A proxy calls it twice a day; replicas of one service share
// an identity and may all renew at once after the control plane was away.
const (
	callerRate, callerBurst     = 1, 20    // per second, for one address
	identityRate, identityBurst = 10, 1000 // per second, for one identity
	maxBuckets                  = 16384
	// maxRootWatches bounds the watches of one identity.
	maxRootWatches = 4096
)

// ServerConfig is what NewServer needs.
type ServerConfig struct {
	Authority *Authority
	Tokens    *Tokens
	// Prove returns who the holder of a token is; nil: Tokens knows. ctx is of
	// the call, for CallerAddr.
	Prove func(ctx context.Context, token string) (mesh.ID, error)
	// TokenOnly demands a token for each certificate, also for a renewal: of
	// tokens that somebody else keeps good, and takes back.
	TokenOnly bool
	// Admit is asked before anything is signed for id; an error refuses, and is
	// logged. nil: whoever proves an identity may have a certificate for it.
	Admit func(id mesh.ID) error
	Log   *slog.Logger // nil: slog.Default()
}

// Server answers the proxies; it implements tullev1.IdentityServer.
type Server struct {
	tullev1.UnimplementedIdentityServer
	config     ServerConfig
	callers    *limiter[netip.Addr]
	identities *limiter[mesh.ID]
	refusals   *refusalLog

	mu      sync.Mutex
	watches map[mesh.ID]int
}

// NewServer returns a Server.
func NewServer(config ServerConfig) *Server {
	if config.Log == nil {
		config.Log = slog.Default()
	}
	if config.Prove == nil {
		config.Prove = func(_ context.Context, token string) (mesh.ID, error) { return config.Tokens.Redeem(token) }
	}
	return &Server{
		config:     config,
		callers:    newLimiter[netip.Addr](callerRate, callerBurst, maxBuckets),
		identities: newLimiter[mesh.ID](identityRate, identityBurst, maxBuckets),
		refusals:   newRefusalLog(config.Log),
		watches:    make(map[mesh.ID]int),
	}
}

// Certify signs a certificate for who the caller proved to be. What it tells
// the caller about a refusal is the same whatever the reason was; the log has it.
func (s *Server) Certify(ctx context.Context, req *tullev1.CertifyRequest) (*tullev1.CertifyResponse, error) {
	now := s.config.Authority.Now()
	from := CallerAddr(ctx)
	if !s.callers.allow(from, now) {
		return nil, s.refuse(codes.ResourceExhausted, from, mesh.ID{}, errors.New("too many calls from this address"))
	}
	id, err := s.prove(ctx, req.GetToken())
	if err != nil {
		return nil, s.refuse(codes.Unauthenticated, from, id, err)
	}
	if !s.identities.allow(id, now) {
		return nil, s.refuse(codes.ResourceExhausted, from, id, errors.New("too many calls of this identity"))
	}
	if err := s.mayCertify(id); err != nil {
		return nil, s.refuse(codes.PermissionDenied, from, id, err)
	}
	issued, err := s.config.Authority.Sign(req.GetCsr(), id, now)
	switch {
	case errors.Is(err, ErrCSR):
		return nil, s.refuse(codes.InvalidArgument, from, id, err)
	case err != nil:
		return nil, s.refuse(codes.Internal, from, id, err)
	}
	if req.GetToken() != "" {
		// Whoever makes tokens bounds those calls: an address that starts and
		// ends many workloads is no flood.
		s.callers.undo(from, now)
	}
	s.config.Log.Debug("signed a certificate", "identity", id, "from", from, "until", issued.NotAfter)
	return &tullev1.CertifyResponse{
		Chain:            issued.Chain,
		NotAfterUnix:     issued.NotAfter.Unix(),
		ServerTimeUnixMs: now.UnixMilli(),
		Roots:            s.config.Authority.Roots().Message(),
	}, nil
}

// errNoToken is a caller who should have shown one.
var errNoToken = errors.New("a certificate does not do: a token is needed each time")

// prove returns who the caller is. A token decides alone if there is one: a
// proxy that was started anew may still show the certificate of before.
func (s *Server) prove(ctx context.Context, token string) (mesh.ID, error) {
	if token != "" {
		return s.config.Prove(ctx, token)
	}
	id, ok := PeerID(ctx)
	if ok && s.config.TokenOnly {
		return id, errNoToken
	}
	if !ok {
		return mesh.ID{}, errNoCertificate
	}
	return id, nil
}

func (s *Server) mayCertify(id mesh.ID) error {
	if id == mesh.ControlID(s.config.Authority.TrustDomain()) {
		return errors.New("the control plane signs its own certificate only in its own process")
	}
	if s.config.Admit != nil {
		return s.config.Admit(id)
	}
	return nil
}

var refusals = map[codes.Code]string{
	codes.ResourceExhausted: "too many requests, try again later",
	codes.Unauthenticated:   "a valid join token or a valid certificate of this mesh is needed",
	codes.PermissionDenied:  "this identity gets no certificate",
	codes.InvalidArgument:   "the CSR is not acceptable",
	codes.Internal:          "the authority cannot sign at the moment",
}

func (s *Server) refuse(code codes.Code, from netip.Addr, id mesh.ID, reason error) error {
	s.refusals.warn(from, "refused to sign a certificate", "identity", id, "code", code, "reason", reason)
	return status.Error(code, refusals[code])
}

// WatchRoots sends the whole set of trusted roots at once and after each change.
func (s *Server) WatchRoots(_ *tullev1.WatchRootsRequest, stream grpc.ServerStreamingServer[tullev1.Roots]) error {
	id, ok := PeerID(stream.Context())
	if !ok {
		return status.Error(codes.Unauthenticated, refusals[codes.Unauthenticated])
	}
	if !s.enter(id) {
		return status.Error(codes.ResourceExhausted, "too many watches of this identity")
	}
	defer s.leave(id)
	for {
		roots, changed := s.config.Authority.Watch()
		if err := stream.Send(roots.Message()); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		}
	}
}

func (s *Server) enter(id mesh.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watches[id] >= maxRootWatches {
		return false
	}
	s.watches[id]++
	return true
}

func (s *Server) leave(id mesh.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watches[id]--; s.watches[id] == 0 {
		delete(s.watches, id)
	}
}

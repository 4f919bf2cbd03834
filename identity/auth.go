package identity

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/mesh"
)

// Bounds of the control plane's listener.
const (
	maxMessage    = 1 << 20 // bytes; a proxy's report on 1,000 edges has about 300 KiB
	maxHeaderList = 16 << 10
	// maxStreams bounds the streams of one connection; a proxy has a few watches
	// and its telemetry.
	maxStreams       = 100
	handshakeTimeout = 10 * time.Second
	connBuffer       = 4 << 10
	// maxConnectionAge makes proxies come back with their newest certificate, so
	// that neither an expired one nor a removed root lives on in an old stream.
	maxConnectionAge      = time.Hour
	maxConnectionAgeGrace = 10 * time.Second
	keepaliveTime         = 5 * time.Second // of silence; a proxy reports each second
	keepaliveTimeout      = 5 * time.Second
	minClientPing         = 10 * time.Second
)

// ServerOptions returns all that a grpc.Server for proxies needs: ServerTLS for
// the control plane's identity, Auth, and bounds.
func ServerOptions(a *Authority, log *slog.Logger) []grpc.ServerOption {
	auth := NewAuth(a, log)
	control := mesh.ControlID(a.TrustDomain())
	creds := credentials.NewTLS(ServerTLS(a, control))
	return []grpc.ServerOption{
		grpc.Creds(loggedHandshakes{TransportCredentials: replicasApart{creds, control}, refusals: auth.refusals}),
		grpc.UnaryInterceptor(auth.Unary),
		grpc.StreamInterceptor(auth.Stream),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxHeaderListSize(maxHeaderList),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.ConnectionTimeout(handshakeTimeout),
		// A thousand proxies that say little: their connections take 6 KiB each, not 70; TLS has a buffer to read from.
		grpc.ReadBufferSize(0), grpc.WriteBufferSize(connBuffer),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minClientPing, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: keepaliveTime, Timeout: keepaliveTimeout,
			MaxConnectionAge: maxConnectionAge, MaxConnectionAgeGrace: maxConnectionAgeGrace,
		}),
	}
}

type callerKey struct{}

// PeerID returns who the caller of an RPC proved to be by its certificate, as
// Auth found it; false if it proved nothing.
func PeerID(ctx context.Context) (mesh.ID, bool) {
	id, ok := ctx.Value(callerKey{}).(mesh.ID)
	return id, ok
}

// errNoCertificate is a caller who showed none.
var errNoCertificate = errors.New("the caller showed no certificate")

// authenticate verifies anew for each RPC: the connection may be older than the
// end of its certificate, or than the roots of now.
func authenticate(ctx context.Context, a *Authority) (mesh.ID, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return mesh.ID{}, errNoCertificate
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return mesh.ID{}, errNoCertificate
	}
	return verifyCaller(a, info.State)
}

// Auth lets RPCs through only from callers with a verified certificate, but for
// Certify.
type Auth struct {
	authority *Authority
	refusals  *refusalLog
}

// NewAuth returns an Auth; its methods are interceptors of a grpc.Server.
func NewAuth(a *Authority, log *slog.Logger) *Auth {
	return &Auth{authority: a, refusals: newRefusalLog(log)}
}

// admit returns the context in which method may run.
func (a *Auth) admit(ctx context.Context, method string) (context.Context, error) {
	id, err := authenticate(ctx, a.authority)
	switch {
	case err == nil:
		return context.WithValue(ctx, callerKey{}, id), nil
	case errors.Is(err, errNoCertificate) && method == tullev1.Identity_Certify_FullMethodName:
		return ctx, nil // Certify itself demands a token then
	}
	a.refusals.warn(CallerAddr(ctx), "refused a call", "method", method, "reason", err)
	return nil, status.Error(codes.Unauthenticated, "a valid certificate of this mesh is needed")
}

// Unary is a grpc.UnaryServerInterceptor.
func (a *Auth) Unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	ctx, err := a.admit(ctx, info.FullMethod)
	if err != nil {
		return nil, err
	}
	return handler(ctx, req)
}

// Stream is a grpc.StreamServerInterceptor.
func (a *Auth) Stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	ctx, err := a.admit(stream.Context(), info.FullMethod)
	if err != nil {
		return err
	}
	return handler(srv, &authenticatedStream{ServerStream: stream, ctx: ctx})
}

type authenticatedStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *authenticatedStream) Context() context.Context { return s.ctx }

// CallerAddr returns the address an RPC came from, the zero Addr if it has none.
func CallerAddr(ctx context.Context) netip.Addr {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return netip.Addr{}
	}
	return addrOf(p.Addr)
}

// CallerName returns the caller of an RPC for counting and for logs: its
// identity, which replicas of a service share, and its address.
func CallerName(ctx context.Context) string {
	id, _ := PeerID(ctx)
	return id.String() + "@" + CallerAddr(ctx).String()
}

package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/identity"
	"github.com/tulle-mesh/tulle/mesh"
)

// relay brings what proxies report to one replica of the control plane, so that
// who looks there sees the whole mesh. That is the one that has run longest;
// the others pass each stream on, both ways, and say whose it is. Nothing
// depends on it but the dashboard: with a replica goes at most its history.
//
//	proxy ──Attach──▶ replica B ──Attach, "on behalf of"──▶ replica A: collector
type relay struct {
	tullev1.UnimplementedTelemetryServer
	local tullev1.TelemetryServer // the collector
	// first returns where the replica is that gathers; "": it is this one.
	first func() string
	dial  func(addr string) (*grpc.ClientConn, error)

	mu  sync.Mutex
	now *gathering
}

// gathering is a time in which one replica gathers.
type gathering struct {
	addr string        // "": this one
	over chan struct{} // closed at the end

	mu    sync.Mutex
	lines []*line // to it
}

// line is a connection to the replica that gathers.
type line struct {
	conn    *grpc.ClientConn
	streams int
}

// maxShared is how many proxies' streams share a line: fewer than a server
// allows on one connection. Lines may be as many as it takes: a replica's are
// not counted among its address's connections (identity.ServerOptions).
const maxShared = 64

// What a stream's metadata says of the proxy whose stream a replica passes on.
const (
	behalfKey = "tulle-on-behalf-of"    // its identity
	fromKey   = "tulle-from"            // its address
	leafKey   = "tulle-certificate-bin" // DER
)

// lookFirst is how often a relay looks who is to gather.
const lookFirst = time.Second

var errMoved = status.Error(codes.Unavailable, "another replica gathers from now on")

// Run follows who gathers until ctx ends.
func (r *relay) Run(ctx context.Context) error {
	tick := time.NewTicker(lookFirst)
	defer tick.Stop()
	for {
		r.look()
		select {
		case <-tick.C:
		case <-ctx.Done():
			r.mu.Lock()
			defer r.mu.Unlock()
			r.endLocked()
			return nil
		}
	}
}

// look begins a new time if another replica is to gather.
func (r *relay) look() {
	addr := r.first()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.now != nil && r.now.addr == addr {
		return
	}
	r.endLocked()
	r.now = &gathering{addr: addr, over: make(chan struct{})}
}

func (r *relay) endLocked() {
	if r.now == nil {
		return
	}
	close(r.now.over)
	r.now.mu.Lock()
	defer r.now.mu.Unlock()
	for _, l := range r.now.lines {
		_ = l.conn.Close()
	}
	r.now = nil
}

// line returns one with room for a stream, which leave ends.
func (g *gathering) line(dial func(addr string) (*grpc.ClientConn, error)) (conn *grpc.ClientConn, leave func(), err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.over:
		return nil, nil, errMoved
	default:
	}
	i := slices.IndexFunc(g.lines, func(l *line) bool { return l.streams < maxShared })
	if i < 0 {
		if conn, err = dial(g.addr); err != nil {
			return nil, nil, err
		}
		g.lines, i = append(g.lines, &line{conn: conn}), len(g.lines)
	}
	l := g.lines[i]
	l.streams++
	return l.conn, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		l.streams--
	}, nil
}

// Attach takes one proxy's reports, or passes them on.
func (r *relay) Attach(stream tullev1.Telemetry_AttachServer) error {
	switch ctx, err := onBehalf(stream.Context()); {
	case err != nil:
		return status.Error(codes.PermissionDenied, err.Error())
	case ctx != nil:
		return r.local.Attach(&passedOn{stream, ctx}) // and not passed on again
	}
	r.mu.Lock()
	now := r.now
	r.mu.Unlock()
	switch {
	case now == nil:
		return errMoved
	case now.addr == "":
		return r.local.Attach(&untilMoved{stream, now.over})
	}
	return r.pass(stream, now)
}

// untilMoved ends a stream at the next report once another replica gathers.
type untilMoved struct {
	tullev1.Telemetry_AttachServer
	over <-chan struct{}
}

func (u *untilMoved) Recv() (*tullev1.ProxyMessage, error) {
	m, err := u.Telemetry_AttachServer.Recv()
	select {
	case <-u.over:
		return nil, errMoved
	default:
		return m, err
	}
}

// pass moves messages both ways until either side ends.
func (r *relay) pass(stream tullev1.Telemetry_AttachServer, to *gathering) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	whose, err := describe(ctx)
	if err != nil {
		return status.Error(codes.Unauthenticated, err.Error())
	}
	conn, leave, err := to.line(r.dial)
	if err != nil {
		return err
	}
	defer leave()
	up, err := tullev1.NewTelemetryClient(conn).Attach(metadata.NewOutgoingContext(ctx, whose))
	if err != nil {
		return err
	}
	answers := make(chan error, 1)
	go func() {
		answers <- forward(up.Recv, stream.Send)
		cancel() // ends what waits for the other's answers; the proxy's own end when we return
	}()
	err = forward(stream.Recv, up.Send)
	if err == nil {
		err = up.CloseSend()
	}
	if err != nil {
		cancel()
	}
	return cmp.Or(<-answers, err) // the other side's reason says more
}

// forward moves messages one way; the end of them is no error.
func forward[T any](recv func() (T, error), send func(T) error) error {
	for {
		m, err := recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = send(m)
		}
		if err != nil {
			return err
		}
	}
}

// describe returns what another replica is to know of the caller.
func describe(ctx context.Context) (metadata.MD, error) {
	id, ok := identity.PeerID(ctx)
	p, ok2 := peer.FromContext(ctx)
	if !ok || !ok2 {
		return nil, errNobody
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return nil, errNobody
	}
	return metadata.Pairs(behalfKey, id.String(), fromKey, p.Addr.String(), leafKey, string(info.State.PeerCertificates[0].Raw)), nil
}

var errNobody = errors.New("the caller proved no identity")

type behalf struct{} // key of a context's mesh.ID

// passedOn is a stream that another replica passes on, with its proxy's context.
type passedOn struct {
	tullev1.Telemetry_AttachServer
	ctx context.Context
}

func (p *passedOn) Context() context.Context { return p.ctx }

// onBehalf returns the context of the proxy whose stream another replica passes
// on; nil if the caller speaks for itself.
func onBehalf(ctx context.Context) (context.Context, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	whose, from, leaf := md.Get(behalfKey), md.Get(fromKey), md.Get(leafKey)
	if len(whose) == 0 {
		return nil, nil
	}
	caller, ok := identity.PeerID(ctx)
	if !ok || caller != mesh.ControlID(caller.TrustDomain) {
		return nil, fmt.Errorf("%s speaks on behalf of another", caller)
	}
	if len(whose) != 1 || len(from) != 1 || len(leaf) != 1 {
		return nil, errors.New("on behalf of whom, is not clear")
	}
	id, err := mesh.ParseID(whose[0])
	addr, err2 := netip.ParseAddrPort(from[0])
	cert, err3 := x509.ParseCertificate([]byte(leaf[0]))
	if err := errors.Join(err, err2, err3); err != nil {
		return nil, err
	}
	ctx = peer.NewContext(ctx, &peer.Peer{
		Addr:     net.TCPAddrFromAddrPort(addr),
		AuthInfo: credentials.TLSInfo{State: tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}},
	})
	return context.WithValue(ctx, behalf{}, id), nil
}

// reporter returns whose reports a stream carries.
func reporter(ctx context.Context) (mesh.ID, error) {
	if id, ok := ctx.Value(behalf{}).(mesh.ID); ok {
		return id, nil
	}
	id, ok := identity.PeerID(ctx)
	if !ok {
		return mesh.ID{}, errNobody
	}
	return id, nil
}

// dialReplica calls another replica, as the control plane.
func dialReplica(a *identity.Authority) func(addr string) (*grpc.ClientConn, error) {
	return func(addr string) (*grpc.ClientConn, error) {
		return grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(credentials.NewTLS(identity.ReplicaTLS(a))), grpc.WithDisableServiceConfig())
	}
}

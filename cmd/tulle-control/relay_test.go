package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"
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

// gatherer is in the dashboard's place: it tells who has come, and answers each
// message with a pace.
type gatherer struct {
	tullev1.UnimplementedTelemetryServer
	came chan arrival
}

type arrival struct {
	id     mesh.ID
	from   string
	serial string
	text   string
}

func (g *gatherer) Attach(stream tullev1.Telemetry_AttachServer) error {
	ctx := stream.Context()
	id, err := reporter(ctx)
	if err != nil {
		return err
	}
	p, _ := peer.FromContext(ctx)
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		leaf := p.AuthInfo.(credentials.TLSInfo).State.PeerCertificates[0]
		g.came <- arrival{id, p.Addr.String(), leaf.SerialNumber.String(), m.GetHello().GetWorkload()}
		if err := stream.Send(&tullev1.ControlMessage{Message: &tullev1.ControlMessage_Pace{Pace: &tullev1.Pace{ReportEveryMs: 7}}}); err != nil {
			return err
		}
	}
}

// replica is a control plane as far as its relay goes.
type replica struct {
	*gatherer
	addr  string
	first atomic.Pointer[string] // "": itself
	relay *relay
}

func newReplica(t *testing.T, a *identity.Authority) *replica {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &replica{gatherer: &gatherer{came: make(chan arrival, 16)}, addr: l.Addr().String()}
	r.gathers("")
	r.relay = &relay{local: r.gatherer, first: func() string { return *r.first.Load() }, dial: dialReplica(a)}
	server := grpc.NewServer(identity.ServerOptions(a, slog.New(slog.DiscardHandler))...)
	tullev1.RegisterTelemetryServer(server, r.relay)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{}, 2)
	go func() { _ = server.Serve(l); ended <- struct{}{} }()
	go func() { _ = r.relay.Run(ctx); ended <- struct{}{} }()
	t.Cleanup(func() {
		cancel()
		server.Stop()
		<-ended
		<-ended
	})
	return r
}

func (r *replica) gathers(addr string) { r.first.Store(&addr) }

// knows waits until the relay has seen who gathers.
func (r *replica) knows(t *testing.T, addr string) {
	t.Helper()
	eventually(t, "known: "+addr+" gathers", func() bool {
		r.relay.mu.Lock()
		defer r.relay.mu.Unlock()
		return r.relay.now != nil && r.relay.now.addr == addr
	})
}

// attach opens a stream as a workload with a certificate of the authority's.
func attach(t *testing.T, a *identity.Authority, addr string, id mesh.ID, more ...string) (tullev1.Telemetry_AttachClient, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	issued, err := a.Sign(csr, id, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(issued.Chain[0])
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		InsecureSkipVerify: true, Certificates: []tls.Certificate{{Certificate: issued.Chain, PrivateKey: key}},
	})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), more...), time.Minute)
	t.Cleanup(cancel)
	stream, err := tullev1.NewTelemetryClient(conn).Attach(ctx, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	return stream, leaf.SerialNumber.String()
}

func hello(t *testing.T, stream tullev1.Telemetry_AttachClient, name string) error {
	t.Helper()
	// An error of Send says only that there is one; Recv tells which.
	_ = stream.Send(&tullev1.ProxyMessage{Message: &tullev1.ProxyMessage_Hello{Hello: &tullev1.Hello{Workload: name}}})
	m, err := stream.Recv()
	if err == nil && m.GetPace().GetReportEveryMs() != 7 {
		t.Errorf("answered with %v", m)
	}
	return err
}

func TestRelay(t *testing.T) {
	pair, err := identity.NewKeyPair("cluster.local", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	authority, err := identity.OpenKeyPair(identity.Config{TrustDomain: "cluster.local", Log: slog.New(slog.DiscardHandler)}, pair)
	if err != nil {
		t.Fatal(err)
	}
	web := mesh.ID{TrustDomain: "cluster.local", Namespace: "shop", Account: "web"}
	a, b := newReplica(t, authority), newReplica(t, authority)
	b.gathers(a.addr)
	a.knows(t, "")
	b.knows(t, a.addr)

	// More than one line's worth of streams come through, each under its own name.
	var streams []tullev1.Telemetry_AttachClient
	for range maxShared + 1 {
		stream, serial := attach(t, authority, b.addr, web)
		if err := hello(t, stream, "web-1"); err != nil {
			t.Fatal(err)
		}
		got := <-a.came
		if got.id != web || got.serial != serial || got.text != "web-1" || got.from == "" {
			t.Fatalf("%+v, want %v with certificate %s", got, web, serial)
		}
		streams = append(streams, stream)
	}

	// From now on b itself gathers: what it passed on ends with the next report,
	// and may come again.
	b.gathers("")
	b.knows(t, "")
	for _, stream := range streams {
		if err := hello(t, stream, "web-1"); err == nil {
			t.Fatal("a stream that was passed on goes on")
		}
	}
	stream, _ := attach(t, authority, b.addr, web)
	if err := hello(t, stream, "web-2"); err != nil {
		t.Fatal(err)
	}
	if got := <-b.came; got.id != web || got.text != "web-2" {
		t.Errorf("%+v", got)
	}

	// And then a again: the proxy hears of it with its next report.
	b.gathers(a.addr)
	b.knows(t, a.addr)
	if err := hello(t, stream, "web-2"); status.Code(err) != codes.Unavailable {
		t.Errorf("a stream to one that gathers no more: %v", err)
	}

	// Only a replica may speak for others.
	liar, _ := attach(t, authority, a.addr, web, behalfKey, "spiffe://cluster.local/ns/shop/sa/bank", fromKey, "10.0.0.1:1", leafKey, "x")
	if err := hello(t, liar, "bank"); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a workload spoke for another: %v", err)
	}
}

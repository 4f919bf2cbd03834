package identity

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/mesh"
)

// control is a control plane on loopback.
type control struct {
	t         *testing.T
	clock     *testClock
	authority *Authority
	tokens    *Tokens
	addr      string
	log       *logBuffer
}

// logBuffer collects a log.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// await waits until the log has all the parts, in vain for 10 s at most.
func (l *logBuffer) await(t *testing.T, parts ...string) {
	t.Helper()
	lacks := func(part string) bool { return !strings.Contains(l.String(), part) }
	for deadline := time.Now().Add(10 * time.Second); slices.ContainsFunc(parts, lacks); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the log does not say %q:\n%s", parts, l)
		}
	}
}

func startControl(t *testing.T, admit func(mesh.ID) error) *control {
	t.Helper()
	c := &control{t: t, clock: newClock(), log: &logBuffer{}}
	log := slog.New(slog.NewTextHandler(c.log, nil))
	c.authority = newAuthority(t, c.clock)
	c.tokens = NewTokens(TokenConfig{Now: c.clock.Now})
	server := NewServer(ServerConfig{Authority: c.authority, Tokens: c.tokens, Admit: admit, Log: log})
	g := grpc.NewServer(ServerOptions(c.authority, log)...)
	tullev1.RegisterIdentityServer(g, server)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c.addr = listener.Addr().String()
	var wg sync.WaitGroup
	wg.Go(func() { g.Serve(Listen(listener)) })
	t.Cleanup(func() { g.Stop(); wg.Wait() })
	return c
}

// dial connects with a leaf, or without one for nil.
func (c *control) dial(leaf *tls.Certificate) tullev1.IdentityClient {
	c.t.Helper()
	roots := c.authority.Roots().Pool
	config := &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // verified by VerifyConnection
		VerifyConnection: func(state tls.ConnectionState) error {
			id, err := mesh.VerifyPeer(state.PeerCertificates, roots, testDomain, x509.ExtKeyUsageServerAuth, c.clock.Now())
			if err == nil && id != mesh.ControlID(testDomain) {
				err = errors.New("not the control plane: " + id.String())
			}
			return err
		},
	}
	if leaf != nil {
		config.Certificates = []tls.Certificate{*leaf}
	}
	conn, err := grpc.NewClient("passthrough:///"+c.addr, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { conn.Close() })
	return tullev1.NewIdentityClient(conn)
}

// leaf is a certificate of a, as a proxy holds it.
func leaf(t *testing.T, a *Authority, id mesh.ID) *tls.Certificate {
	t.Helper()
	key := newKey(t)
	issued, err := a.Sign(newCSR(t, key, id), id, a.Now())
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: issued.Chain, PrivateKey: key}
}

func (c *control) token(id mesh.ID) string {
	c.t.Helper()
	token, err := c.tokens.Issue(id)
	if err != nil {
		c.t.Fatal(err)
	}
	return token
}

func checkCode(t *testing.T, what string, err error, want codes.Code) {
	t.Helper()
	if got := status.Code(err); got != want {
		t.Errorf("%s: %v (%v), want %v", what, got, err, want)
	}
}

func TestCertifyByTokenThenRenew(t *testing.T) {
	c := startControl(t, nil)
	key := newKey(t)
	resp, err := c.dial(nil).Certify(t.Context(), &tullev1.CertifyRequest{Csr: newCSR(t, key, webID), Token: c.token(webID)})
	if err != nil {
		t.Fatal(err)
	}
	if id, err := verify(resp.GetChain(), c.authority.Roots(), c.clock.Now()); err != nil || id != webID {
		t.Errorf("certified %v, %v", id, err)
	}
	if got, want := time.UnixMilli(resp.GetServerTimeUnixMs()), c.clock.Now(); !got.Equal(want) {
		t.Errorf("server time %v, want %v", got, want)
	}
	if got, want := time.Unix(resp.GetNotAfterUnix(), 0), c.clock.Now().Add(LeafLife); !got.Equal(want) {
		t.Errorf("not after %v, want %v", got, want)
	}
	if got := resp.GetRoots(); len(got.GetCertificates()) != 1 || got.GetTrustDomain() != testDomain {
		t.Errorf("roots %v", got)
	}

	client := c.dial(&tls.Certificate{Certificate: resp.GetChain(), PrivateKey: key})
	c.clock.Advance(16 * time.Hour)
	resp, err = client.Certify(t.Context(), &tullev1.CertifyRequest{Csr: newCSR(t, newKey(t), mesh.ID{})})
	if err != nil {
		t.Fatal(err)
	}
	if id, err := verify(resp.GetChain(), c.authority.Roots(), c.clock.Now().Add(LeafLife-time.Minute)); err != nil || id != webID {
		t.Errorf("renewed %v, %v", id, err)
	}
}

// Whatever is wrong with a proof, the caller hears the same, and the log why.
func TestCertifyRefusals(t *testing.T) {
	c := startControl(t, func(id mesh.ID) error {
		if id.Account == "gone" {
			return errors.New("no such workload runs")
		}
		return nil
	})
	used, expired := c.token(webID), c.token(webID)
	csr := newCSR(t, newKey(t), webID)
	nobody := c.dial(nil)
	if _, err := nobody.Certify(t.Context(), &tullev1.CertifyRequest{Csr: csr, Token: used}); err != nil {
		t.Fatal(err)
	}
	c.clock.Advance(2 * defaultTokenLife)
	gone := mesh.ID{TrustDomain: testDomain, Namespace: "default", Account: "gone"}
	controlID := mesh.ControlID(testDomain)
	tests := []struct {
		name   string
		client tullev1.IdentityClient
		req    *tullev1.CertifyRequest
		want   codes.Code
		logged string
	}{
		{"nothing", nobody, &tullev1.CertifyRequest{Csr: csr}, codes.Unauthenticated, "showed no certificate"},
		{"garbage token", nobody, &tullev1.CertifyRequest{Csr: csr, Token: "x"}, codes.Unauthenticated, "1 characters"},
		{"used token", nobody, &tullev1.CertifyRequest{Csr: csr, Token: used}, codes.Unauthenticated, "used already"},
		{"expired token", nobody, &tullev1.CertifyRequest{Csr: csr, Token: expired}, codes.Unauthenticated, "ended"},
		{"bad token with a good certificate", c.dial(leaf(t, c.authority, webID)), &tullev1.CertifyRequest{Csr: csr, Token: used}, codes.Unauthenticated, "used already"},
		{"CSR for another", nobody, &tullev1.CertifyRequest{Csr: csr, Token: c.token(otherID)}, codes.InvalidArgument, "the caller is " + otherID.String()},
		{"no CSR", c.dial(leaf(t, c.authority, webID)), &tullev1.CertifyRequest{}, codes.InvalidArgument, "CSR refused"},
		{"not admitted", nobody, &tullev1.CertifyRequest{Csr: newCSR(t, newKey(t), gone), Token: c.token(gone)}, codes.PermissionDenied, "no such workload"},
		{"the control plane's own name", c.dial(leaf(t, c.authority, controlID)), &tullev1.CertifyRequest{Csr: newCSR(t, newKey(t), controlID)}, codes.PermissionDenied, "its own process"},
	}
	for _, tt := range tests {
		_, err := tt.client.Certify(t.Context(), tt.req)
		checkCode(t, tt.name, err, tt.want)
		if got := status.Convert(err).Message(); got != refusals[tt.want] {
			t.Errorf("%s: the caller hears %q, want %q", tt.name, got, refusals[tt.want])
		}
		if !strings.Contains(c.log.String(), tt.logged) {
			t.Errorf("%s: the log does not say %q:\n%s", tt.name, tt.logged, c.log)
		}
	}
	if strings.Contains(c.log.String(), used) || strings.Contains(c.log.String(), expired) {
		t.Error("the log contains a token")
	}
}

func TestCertifyIsRateLimited(t *testing.T) {
	c := startControl(t, nil)
	client := c.dial(leaf(t, c.authority, webID))
	csr := newCSR(t, newKey(t), webID)
	var signed int
	for range 10 * callerBurst {
		_, err := client.Certify(t.Context(), &tullev1.CertifyRequest{Csr: csr})
		if err == nil {
			signed++
			continue
		}
		checkCode(t, "flood", err, codes.ResourceExhausted)
	}
	if n := strings.Count(c.log.String(), "\n"); n > refusalBurst {
		t.Errorf("the flood filled the log with %d lines", n)
	}
	if signed != callerBurst {
		t.Errorf("signed %d, want %d", signed, callerBurst)
	}
	c.clock.Advance(5 * time.Second)
	if _, err := client.Certify(t.Context(), &tullev1.CertifyRequest{Csr: csr}); err != nil {
		t.Errorf("after a while: %v", err)
	}
}

// A certificate that is no good any more does not live on in its connection.
func TestOldConnectionsAreVerifiedAnew(t *testing.T) {
	c := startControl(t, nil)
	req := &tullev1.CertifyRequest{Csr: newCSR(t, newKey(t), webID)}
	t.Run("expired", func(t *testing.T) {
		client := c.dial(leaf(t, c.authority, webID))
		if _, err := client.Certify(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		c.clock.Advance(LeafLife + time.Second)
		_, err := client.Certify(t.Context(), req)
		checkCode(t, "expired", err, codes.Unauthenticated)
	})
	t.Run("root removed", func(t *testing.T) {
		old := c.authority.Roots().Certificates[0]
		client := c.dial(leaf(t, c.authority, webID))
		if _, err := client.Certify(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		if _, err := c.authority.Prepare(); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(c.authority.Promote(), c.authority.RemoveRoot(old)); err != nil {
			t.Fatal(err)
		}
		_, err := client.Certify(t.Context(), req)
		checkCode(t, "root removed", err, codes.Unauthenticated)
	})
}

func TestBadClientCertificateEndsTheHandshake(t *testing.T) {
	c := startControl(t, nil)
	stranger := newAuthority(t, c.clock)
	for name, cert := range map[string]*tls.Certificate{
		"untrusted": leaf(t, stranger, webID),
		"bad-name":  selfSigned(t),
	} {
		client := c.dial(cert)
		_, err := client.Certify(t.Context(), &tullev1.CertifyRequest{Csr: newCSR(t, newKey(t), webID), Token: c.token(webID)})
		checkCode(t, name, err, codes.Unavailable)
		// The client hears of it before the server's handshake has returned.
		c.log.await(t, "peer certificate refused ("+name+")", "from=127.0.0.1")
	}
}

func selfSigned(t *testing.T) *tls.Certificate {
	t.Helper()
	root, err := newSigner(testDomain, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{root.cert.Raw}, PrivateKey: root.key}
}

func TestServerTLSVersions(t *testing.T) {
	c := startControl(t, nil)
	for name, config := range map[string]*tls.Config{
		"TLS 1.2":     {MaxVersion: tls.VersionTLS12},
		"X25519 only": {CurvePreferences: []tls.CurveID{tls.X25519}},
		"P-256 only":  {CurvePreferences: []tls.CurveID{tls.CurveP256}},
	} {
		config.InsecureSkipVerify = true
		conn, err := tls.Dial("tcp", c.addr, config)
		if err == nil {
			conn.Close()
			t.Errorf("%s: accepted", name)
		}
	}
	conn, err := tls.Dial("tcp", c.addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if state := conn.ConnectionState(); state.Version != tls.VersionTLS13 || state.CurveID != tls.X25519MLKEM768 {
		t.Errorf("version %x, curve %v", state.Version, state.CurveID)
	}
}

func TestOwnLeaf(t *testing.T) {
	clock := newClock()
	a := newAuthority(t, clock)
	control := mesh.ControlID(testDomain)
	own := &ownLeaf{authority: a, names: x509.Certificate{URIs: []*url.URL{control.URL()}}}
	get := func() *tls.Certificate {
		t.Helper()
		cert, err := own.get(nil)
		if err != nil {
			t.Fatal(err)
		}
		if id, err := verify(cert.Certificate, a.Roots(), clock.Now()); err != nil || id != control {
			t.Fatalf("%v, %v", id, err)
		}
		return cert
	}
	first := get()
	clock.Advance(14 * time.Hour)
	if get() != first {
		t.Error("renewed too early")
	}
	clock.Advance(4 * time.Hour)
	second := get()
	if second == first || second.PrivateKey.(*ecdsa.PrivateKey).Equal(first.PrivateKey) {
		t.Error("not renewed with a new key")
	}
	if _, err := a.Prepare(); err != nil {
		t.Fatal(err)
	}
	if get() != second {
		t.Error("renewed, though the same root signs")
	}
	if err := a.Promote(); err != nil {
		t.Fatal(err)
	}
	if get() == second {
		t.Error("not renewed by the root that signs now")
	}
}

func TestWatchRoots(t *testing.T) {
	c := startControl(t, nil)
	stream, err := c.dial(nil).WatchRoots(t.Context(), &tullev1.WatchRootsRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	checkCode(t, "without a certificate", err, codes.Unauthenticated)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err = c.dial(leaf(t, c.authority, webID)).WatchRoots(ctx, &tullev1.WatchRootsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	first, err := stream.Recv()
	if err != nil || len(first.GetCertificates()) != 1 {
		t.Fatalf("first: %v, %v", first, err)
	}
	if _, err := c.authority.Prepare(); err != nil {
		t.Fatal(err)
	}
	second, err := stream.Recv()
	if err != nil || len(second.GetCertificates()) != 2 || second.GetRevision() <= first.GetRevision() {
		t.Errorf("second: %v, %v", second, err)
	}
	cancel()
	_, err = stream.Recv()
	checkCode(t, "cancelled", err, codes.Canceled)
}

func TestWatchesAreBounded(t *testing.T) {
	s := NewServer(ServerConfig{Authority: newAuthority(t, newClock()), Tokens: NewTokens(TokenConfig{})})
	for range maxRootWatches {
		if !s.enter(webID) {
			t.Fatal("refused below the limit")
		}
	}
	if s.enter(webID) {
		t.Error("no limit")
	}
	if !s.enter(otherID) {
		t.Error("one identity uses up another's share")
	}
	s.leave(otherID)
	for range maxRootWatches {
		s.leave(webID)
	}
	if len(s.watches) != 0 {
		t.Errorf("%d identities are still counted", len(s.watches))
	}
}

func TestMessagesAreBounded(t *testing.T) {
	c := startControl(t, nil)
	_, err := c.dial(nil).Certify(t.Context(), &tullev1.CertifyRequest{Csr: make([]byte, 2*maxMessage)})
	checkCode(t, "2 MiB", err, codes.ResourceExhausted)
}

// Only Certify may be called without a certificate, whatever else is served.
func TestAdmitByMethod(t *testing.T) {
	auth := NewAuth(newAuthority(t, newClock()), discard)
	for method, ok := range map[string]bool{
		"/tulle.v1.Identity/Certify":    true,
		"/tulle.v1.Identity/WatchRoots": false,
		"/tulle.v1.Discovery/Watch":     false,
		"/tulle.v1.Telemetry/Attach":    false,
		"":                              false,
	} {
		ctx, err := auth.admit(t.Context(), method)
		if (err == nil) != ok {
			t.Errorf("%s: %v", method, err)
		}
		if err == nil {
			if id, proved := PeerID(ctx); proved {
				t.Errorf("%s: nobody is %v", method, id)
			}
		}
	}
}

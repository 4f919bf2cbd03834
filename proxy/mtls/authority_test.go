package mtls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/mesh"
)

// authority plays the control plane over connections in memory, so that it
// works on fake time. It demands what the real one does: a token, or a
// certificate that is good now.
type authority struct {
	tullev1.UnimplementedIdentityServer
	t testing.TB

	mu       sync.Mutex
	ca       *ca   // who signs
	trusted  []*ca // who is trusted
	down     bool
	life     time.Duration
	skew     time.Duration // of its clock
	spoil    func(*tullev1.CertifyResponse)
	change   func(*x509.Certificate)
	calls    []call
	watchers map[chan struct{}]bool
	ln       *bufconn.Listener
	server   *grpc.Server
}

// call is one Certify.
type call struct {
	at    time.Time
	token string
	shown mesh.ID // by certificate
	err   error
}

func newTestAuthority(t testing.TB) *authority {
	t.Helper()
	root := newCA(t)
	a := &authority{t: t, ca: root, trusted: []*ca{root}, life: 24 * time.Hour, watchers: map[chan struct{}]bool{}}
	forever := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(5 * 365 * 24 * time.Hour) }
	a.server = grpc.NewServer(grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second}), grpc.Creds(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{tls.X25519MLKEM768},
		ClientAuth: tls.RequestClientCert, SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			a.mu.Lock()
			defer a.mu.Unlock()
			own := a.ca.issue(t, mesh.ControlID(testDomain), forever)
			return &own, nil
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return nil
			}
			_, err := mesh.VerifyPeer(cs.PeerCertificates, a.pool(), testDomain, x509.ExtKeyUsageClientAuth, a.now())
			return err
		},
	})))
	tullev1.RegisterIdentityServer(a.server, a)
	a.ln = bufconn.Listen(64 << 10)
	var serving sync.WaitGroup
	serving.Go(func() { _ = a.server.Serve(a.ln) })
	t.Cleanup(func() { a.server.Stop(); serving.Wait() })
	return a
}

func (a *authority) set(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
	for w := range a.watchers {
		select {
		case w <- struct{}{}:
		default:
		}
	}
}

func (a *authority) now() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return time.Now().Add(a.skew)
}

func (a *authority) pool() *x509.CertPool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return rootsOf(a.t, a.trusted...).Pool
}

func (a *authority) seen() []call {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]call(nil), a.calls...)
}

func (a *authority) dial(ctx context.Context, _ string) (net.Conn, error) {
	a.mu.Lock()
	down := a.down
	a.mu.Unlock()
	if down {
		return nil, errors.New("connection refused")
	}
	return a.ln.DialContext(ctx)
}

func (a *authority) Certify(ctx context.Context, req *tullev1.CertifyRequest) (*tullev1.CertifyResponse, error) {
	c := call{at: time.Now(), token: req.GetToken()}
	if p, ok := peer.FromContext(ctx); ok {
		c.shown = PeerID(p.AuthInfo.(credentials.TLSInfo).State)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.down {
		c.err = status.Error(codes.Unavailable, "going down")
	} else if c.token != "good" && (c.token != "" || c.shown.IsZero()) {
		c.err = status.Error(codes.Unauthenticated, "a valid join token or a valid certificate is needed")
	}
	a.calls = append(a.calls, c)
	if c.err != nil {
		return nil, c.err
	}
	csr, err := x509.ParseCertificateRequest(req.GetCsr())
	if err != nil || csr.CheckSignature() != nil {
		return nil, status.Error(codes.InvalidArgument, "bad CSR")
	}
	template := leafFor(testID("web"))
	template.NotAfter = time.Now().Add(a.life)
	if a.change != nil {
		a.change(template)
	}
	cert := sign(a.t, template, a.ca.cert, csr.PublicKey, a.ca.key)
	answer := &tullev1.CertifyResponse{
		Chain: [][]byte{cert.Raw}, NotAfterUnix: cert.NotAfter.Unix(),
		ServerTimeUnixMs: time.Now().Add(a.skew).UnixMilli(), Roots: a.rootsLocked(),
	}
	if a.spoil != nil {
		a.spoil(answer)
	}
	return answer, nil
}

func (a *authority) rootsLocked() *tullev1.Roots {
	m := &tullev1.Roots{Revision: 1, TrustDomain: testDomain}
	for _, c := range a.trusted {
		m.Certificates = append(m.Certificates, c.cert.Raw)
	}
	return m
}

func (a *authority) WatchRoots(_ *tullev1.WatchRootsRequest, stream tullev1.Identity_WatchRootsServer) error {
	wake := make(chan struct{}, 1)
	a.mu.Lock()
	a.watchers[wake] = true
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		delete(a.watchers, wake)
		a.mu.Unlock()
	}()
	for {
		a.mu.Lock()
		m := a.rootsLocked()
		a.mu.Unlock()
		if err := stream.Send(m); err != nil {
			return err
		}
		select {
		case <-wake:
		case <-stream.Context().Done():
			return nil
		}
	}
}

// logLines is what was logged.
type logLines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logLines) count(part string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), part)
}

// newCertifier returns one that trusts a at first and has good tokens.
func newCertifier(t testing.TB, a *authority) (*Certifier, *logLines) {
	lines := &logLines{}
	return &Certifier{
		ID: testID("web"), Control: "control", Roots: a.ca.roots(t), Source: &Source{},
		Token: func(context.Context) (string, error) { return "good", nil },
		Log:   slog.New(slog.NewTextHandler(lines, nil)), connect: a.dial,
	}, lines
}

// start gets the first certificate and keeps it renewed until stop is called.
func start(t testing.TB, c *Certifier) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	if err := c.First(ctx); err != nil {
		t.Fatal(err)
	}
	conn, err := c.Dial()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx, conn) }()
	return func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
		conn.Close()
		a := c.Source.Load()
		if a == nil || a.Leaf.Leaf == nil {
			t.Error("no certificate at the end")
		}
	}
}

package proxy

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/proxy/balance"
	"github.com/tulle-mesh/tulle/proxy/mtls"
	"github.com/tulle-mesh/tulle/proxy/mux"
	"github.com/tulle-mesh/tulle/proxy/tcp"
)

// testSilence is long, so that a busy machine does not make a client silent.
const testSilence = time.Second

// testAuthority signs the certificates of test proxies.
type testAuthority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newTestAuthority(t testing.TB) *testAuthority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &testAuthority{key: key, cert: cert}
}

func (a *testAuthority) credentials(t testing.TB, id mesh.ID) *mtls.Credentials {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		URIs: []*url.URL{id.URL()}, KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots, err := mtls.NewRoots([][]byte{a.cert.Raw})
	if err != nil {
		t.Fatal(err)
	}
	return mtls.NewCredentials(id, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, roots)
}

// testPair is a client's and a server's proxy on loopback, without a redirect:
// what is accepted is handed to them as if the redirect had brought it.
type testPair struct {
	client, server *Proxy
	dest           *destination
	addr           string // dial this to reach the application through both proxies
	plain          string // dial this to reach it through the server's proxy only
}

func newTestProxy(t testing.TB, a *testAuthority, name string, strict bool) *Proxy {
	t.Helper()
	id := mesh.ID{TrustDomain: "test.local", Namespace: "default", Account: name}
	p := &Proxy{
		config: Config{Workload: name + "-1", Service: name, ID: id, Strict: strict},
		log:    slog.New(slog.DiscardHandler), start: time.Now(), silence: testSilence,
		windows: mux.NewGrowth(windowGrowth),
	}
	p.conns.init(parkAfter)
	p.creds.Store(a.credentials(t, id))
	var err error
	if p.hangups, err = newHangups(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = p.hangups.run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	return p
}

// newTestPair puts two proxies, tuned if need be, in front of the application at app.
func newTestPair(t testing.TB, app net.Addr, strict bool, tune ...func(*Proxy)) *testPair {
	t.Helper()
	authority := newTestAuthority(t)
	pair := &testPair{client: newTestProxy(t, authority, "client", false), server: newTestProxy(t, authority, "server", strict)}
	for _, f := range tune {
		f(pair.client)
		f(pair.server)
	}
	appAddr, err := addrPort(app)
	if err != nil {
		t.Fatal(err)
	}
	in := serveTest(t, pair.server, func(ctx context.Context, c *tcp.Conn, tr *tracked) bool {
		i := &inbound{proxy: pair.server, conn: c, track: tr, app: appAddr}
		i.client.Addr, _ = addrPort(c.RemoteAddr())
		if i.serve(ctx) {
			return true
		}
		i.leave()
		return false
	})
	pair.plain = in.String()
	pair.dest = newTestDestination(pair.client, "server", balance.Spec[endpointKey]{
		Key: endpointKey{addr: in, id: pair.server.config.ID, workload: "server-1"}, Ready: true,
	})
	t.Cleanup(pair.dest.set.Close)
	pair.addr = serveTest(t, pair.client, func(ctx context.Context, c *tcp.Conn, tr *tracked) bool {
		o := &outbound{proxy: pair.client, conn: c, track: tr, dest: pair.dest}
		o.client, _ = addrPort(c.RemoteAddr())
		return o.serve(ctx)
	}).String()
	return pair
}

func newTestDestination(p *Proxy, service string, specs ...balance.Spec[endpointKey]) *destination {
	d := &destination{ready: make(chan struct{})}
	d.facts.Store(&destinationFacts{service: service})
	d.set = balance.New(balance.Config[endpointKey, *upstream]{
		New:     func(k endpointKey) *upstream { return newUpstream(p, service, k) },
		Release: (*upstream).close,
	})
	d.set.Update(p.now(), specs)
	close(d.ready)
	return d
}

// serveTest accepts on a loopback port for the length of the test.
func serveTest(t testing.TB, p *Proxy, serve func(context.Context, *tcp.Conn, *tracked) bool) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.serving.Go(func() { p.accept(context.Background(), ln.(*net.TCPListener), serve) })
	t.Cleanup(func() {
		ln.Close()
		p.conns.drain(time.Second)
		p.serving.Wait()
	})
	addr, err := addrPort(ln.Addr())
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

// tcpApp serves connections on loopback.
func tcpApp(t testing.TB, serve func(c *net.TCPConn)) net.Addr {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c.(*net.TCPConn))
			}()
		}
	}()
	return ln.Addr()
}

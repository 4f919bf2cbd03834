package mtls

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/test/bufconn"

	"github.com/tulle-mesh/tulle/mesh"
)

func TestHandshake(t *testing.T) {
	a := newCA(t)
	client, server := a.credentials(t, "client"), a.credentials(t, "server")
	for _, proto := range []string{mesh.ALPNHTTP1, mesh.ALPNTCP} {
		s := shake(t, client.Client(testID("server"), proto), server.Server())
		if !s.ok() {
			t.Fatalf("client: %v, server: %v", s.client, s.server)
		}
		for side, saw := range map[string]tls.ConnectionState{"client": s.clientSaw, "server": s.serverSaw} {
			if saw.Version != tls.VersionTLS13 || saw.CurveID != tls.X25519MLKEM768 || saw.NegotiatedProtocol != proto {
				t.Errorf("%s: version %x, group %v, protocol %q", side, saw.Version, saw.CurveID, saw.NegotiatedProtocol)
			}
		}
		if got := PeerID(s.serverSaw); got != testID("client") {
			t.Errorf("the server sees %v", got)
		}
		if got := PeerID(s.clientSaw); got != testID("server") {
			t.Errorf("the client sees %v", got)
		}
	}
}

// bad is what a peer might present, and why it is refused.
var bad = []struct {
	name   string
	change func(t testing.TB, c *x509.Certificate)
	reason mesh.PeerReason
}{
	{"expired", func(_ testing.TB, c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Minute)
	}, mesh.Expired},
	{"not yet valid", func(_ testing.TB, c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }, mesh.NotYetValid},
	{"other trust domain", func(_ testing.TB, c *x509.Certificate) {
		c.URIs = []*url.URL{(mesh.ID{TrustDomain: "evil.local", Namespace: "default", Account: "server"}).URL()}
	}, mesh.OtherTrustDomain},
	{"no name", func(_ testing.TB, c *x509.Certificate) { c.URIs = nil }, mesh.BadName},
	{"DNS name only", func(_ testing.TB, c *x509.Certificate) { c.URIs, c.DNSNames = nil, []string{"server"} }, mesh.BadName},
	{"DNS name as well", func(_ testing.TB, c *x509.Certificate) { c.DNSNames = []string{"server"} }, mesh.BadName},
	{"two URIs", func(_ testing.TB, c *x509.Certificate) { c.URIs = append(c.URIs, testID("other").URL()) }, mesh.BadName},
	{"the URI twice", func(_ testing.TB, c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) }, mesh.BadName},
	{"trailing slash", func(t testing.TB, c *x509.Certificate) { rawName(t, c, testID("server").String()+"/") }, mesh.BadName},
	{"upper case", func(t testing.TB, c *x509.Certificate) { rawName(t, c, "SPIFFE://test.local/ns/default/sa/server") }, mesh.BadName},
	{"percent", func(t testing.TB, c *x509.Certificate) { rawName(t, c, "spiffe://test.local/ns/default/sa/%73erver") }, mesh.BadName},
	{"wildcard", func(t testing.TB, c *x509.Certificate) { rawName(t, c, "spiffe://test.local/ns/default/sa/*") }, mesh.BadName},
	{"an authority's", func(_ testing.TB, c *x509.Certificate) { c.IsCA, c.KeyUsage = true, c.KeyUsage|x509.KeyUsageCertSign }, mesh.WrongUsage},
	{"no usage", func(_ testing.TB, c *x509.Certificate) { c.ExtKeyUsage = nil }, mesh.WrongUsage},
	{"no signing", func(_ testing.TB, c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }, mesh.WrongUsage},
}

// rawName gives c the name byte for byte as no honest encoder would.
func rawName(t testing.TB, c *x509.Certificate, name string) {
	t.Helper()
	c.URIs = nil
	der, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(name)}})
	if err != nil {
		t.Fatal(err)
	}
	c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: der}}
}

func mustRefuse(t *testing.T, name string, err error, reason mesh.PeerReason) {
	t.Helper()
	refused, ok := errors.AsType[*mesh.PeerError](err)
	switch {
	case err == nil:
		t.Errorf("%s: accepted", name)
	case reason != "" && (!ok || refused.Reason != reason):
		t.Errorf("%s: %v, want the reason %s", name, err, reason)
	}
}

// Whatever is wrong with one side's certificate, the other side refuses it.
func TestBadCertificates(t *testing.T) {
	a := newCA(t)
	good := a.credentials(t, "server")
	for _, tt := range bad {
		leaf := a.issue(t, testID("server"), func(c *x509.Certificate) { tt.change(t, c) })
		evil := NewCredentials(testID("server"), leaf, a.roots(t))
		asServer := shake(t, good.Client(testID("server"), mesh.ALPNTCP), evil.Server())
		mustRefuse(t, tt.name+", as server", asServer.client, tt.reason)
		if asServer.server == nil {
			t.Errorf("%s: the server got through to its data", tt.name)
		}
		asClient := shake(t, evil.Client(testID("server"), mesh.ALPNTCP), good.Server())
		mustRefuse(t, tt.name+", as client", asClient.server, tt.reason)
		if asClient.client == nil {
			t.Errorf("%s: the client got through to its data", tt.name)
		}
	}
}

func TestRoleOfTheCertificate(t *testing.T) {
	a := newCA(t)
	good := a.credentials(t, "server")
	only := func(u x509.ExtKeyUsage) *Credentials {
		return NewCredentials(testID("server"), a.issue(t, testID("server"), func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{u} }), a.roots(t))
	}
	s := shake(t, good.Client(testID("server"), mesh.ALPNTCP), only(x509.ExtKeyUsageClientAuth).Server())
	mustRefuse(t, "a client's as server", s.client, mesh.WrongUsage)
	s = shake(t, only(x509.ExtKeyUsageServerAuth).Client(testID("server"), mesh.ALPNTCP), good.Server())
	mustRefuse(t, "a server's as client", s.server, mesh.WrongUsage)
}

func TestWrongKeys(t *testing.T) {
	a := newCA(t)
	good := a.credentials(t, "server")
	weak, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	cert := sign(t, leafFor(testID("server")), a.cert, &weak.PublicKey, a.key)
	leaf := tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: weak, Leaf: cert}
	s := shake(t, good.Client(testID("server"), mesh.ALPNTCP), NewCredentials(testID("server"), leaf, a.roots(t)).Server())
	mustRefuse(t, "RSA", s.client, mesh.WrongKey)

	long := a.issue(t, testID("server"), nil)
	for range 10 {
		long.Certificate = append(long.Certificate, a.cert.Raw)
	}
	s = shake(t, good.Client(testID("server"), mesh.ALPNTCP), NewCredentials(testID("server"), long, a.roots(t)).Server())
	mustRefuse(t, "chain of 11", s.client, mesh.ChainTooLong)
}

func TestOtherRoot(t *testing.T) {
	ours, theirs := newCA(t), newCA(t)
	good, evil := ours.credentials(t, "server"), theirs.credentials(t, "server")
	s := shake(t, good.Client(testID("server"), mesh.ALPNTCP), evil.Server())
	mustRefuse(t, "as server", s.client, mesh.Untrusted)
	s = shake(t, evil.Client(testID("server"), mesh.ALPNTCP), NewCredentials(testID("server"), good.Leaf, ours.roots(t)).Server())
	if s.client == nil && s.server == nil {
		t.Error("a client of another root got through")
	}
	// The evil client does not care who answers; the server has to.
	careless := evil.Client(testID("server"), mesh.ALPNTCP)
	careless.VerifyConnection = nil
	s = shake(t, careless, good.Server())
	mustRefuse(t, "as client", s.server, mesh.Untrusted)
}

func TestOtherIdentity(t *testing.T) {
	a := newCA(t)
	s := shake(t, a.credentials(t, "client").Client(testID("server"), mesh.ALPNTCP), a.credentials(t, "impostor").Server())
	if !errors.Is(s.client, ErrOtherIdentity) {
		t.Errorf("client: %v, want %v", s.client, ErrOtherIdentity)
	}
	if s.server == nil {
		t.Error("the impostor got a byte")
	}
}

// What a stranger might offer instead of the mesh's protocol.
func TestClientsOutsideTheProtocol(t *testing.T) {
	a := newCA(t)
	server := a.credentials(t, "server").Server()
	client := func(change func(*tls.Config)) *tls.Config {
		conf := a.credentials(t, "client").Client(testID("server"), mesh.ALPNTCP)
		conf.VerifyConnection = nil
		change(conf)
		return conf
	}
	for _, tt := range []struct {
		name   string
		change func(*tls.Config)
		want   string
	}{
		{"no certificate", func(c *tls.Config) { c.Certificates = nil }, "certificate"},
		{"TLS 1.2", func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }, "version"},
		{"TLS 1.0", func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS10 }, "version"},
		{"X25519 only", func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.X25519} }, "key exchanges"},
		{"P-256 only", func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.CurveP256} }, "key exchanges"},
		{"other protocol", func(c *tls.Config) { c.NextProtos = []string{"h2"} }, "protocol"},
		{"no protocol", func(c *tls.Config) { c.NextProtos = nil }, "protocol"},
	} {
		s := shake(t, client(tt.change), server)
		if s.server == nil || !strings.Contains(s.server.Error(), tt.want) || s.client == nil {
			t.Errorf("%s: server %v, client %v; want it refused because of its %s", tt.name, s.server, s.client, tt.want)
		}
	}
}

func TestServersOutsideTheProtocol(t *testing.T) {
	a := newCA(t)
	for _, tt := range []struct {
		name   string
		change func(*tls.Config)
	}{
		{"TLS 1.2", func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }},
		{"X25519 only", func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.X25519} }},
		{"other protocol", func(c *tls.Config) { c.NextProtos = []string{"h2"} }},
		{"no protocol", func(c *tls.Config) { c.NextProtos = nil }},
	} {
		conf := a.credentials(t, "server").Server().Clone()
		conf.VerifyConnection = nil
		tt.change(conf)
		if s := shake(t, a.credentials(t, "client").Client(testID("server"), mesh.ALPNTCP), conf); s.client == nil {
			t.Errorf("%s: accepted", tt.name)
		}
	}
}

// Each handshake proves both sides anew, even to a client that would rather not.
func TestNoSessionIsResumed(t *testing.T) {
	a := newCA(t)
	client, server := a.credentials(t, "client"), a.credentials(t, "server")
	conf := client.Client(testID("server"), mesh.ALPNTCP)
	conf.ServerName, conf.SessionTicketsDisabled = "one", false
	conf.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	for range 3 {
		if s := shake(t, conf, server.Server()); !s.ok() || s.clientSaw.DidResume || s.serverSaw.DidResume {
			t.Fatalf("client %v, server %v, resumed %v", s.client, s.server, s.clientSaw.DidResume)
		}
	}
	if _, ok := conf.ClientSessionCache.Get("one"); ok {
		t.Error("the server gave a ticket")
	}
}

// On fake time, over pipes: what was good is refused once it has ended, under
// the same configurations.
func TestExpiry(t *testing.T) {
	for _, who := range []string{"client", "server"} {
		t.Run(who, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newCA(t)
				creds := map[string]*Credentials{"client": a.credentials(t, "client"), "server": a.credentials(t, "server")}
				creds[who] = NewCredentials(testID(who), a.issue(t, testID(who), func(c *x509.Certificate) { c.NotAfter = time.Now().Add(time.Hour) }), a.roots(t))
				client, server := creds["client"].Client(testID("server"), mesh.ALPNTCP), creds["server"].Server()
				time.Sleep(59 * time.Minute)
				if s := shakePiped(client, server); !s.ok() {
					t.Fatalf("before the end: %v %v", s.client, s.server)
				}
				time.Sleep(2 * time.Minute)
				s := shakePiped(client, server)
				err := s.server // of who has to refuse
				if who == "server" {
					err = s.client
				}
				mustRefuse(t, "after the end", err, mesh.Expired)
			})
		})
	}
}

// shakePiped is shake where time is not real.
func shakePiped(client, server *tls.Config) *shaken {
	s := &shaken{}
	ln := bufconn.Listen(64 << 10)
	defer ln.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		theirs, err := ln.Accept()
		if err != nil {
			s.server = err
			return
		}
		defer theirs.Close()
		conn := tls.Server(theirs, server)
		if s.server = conn.Handshake(); s.server == nil {
			_, s.server = conn.Write([]byte("x"))
		}
	}()
	ours, err := ln.Dial()
	if err != nil {
		s.client = err
		return s
	}
	conn := tls.Client(ours, client)
	if s.client = conn.Handshake(); s.client == nil {
		_, s.client = conn.Read(make([]byte, 1))
	}
	ours.Close()
	<-done
	return s
}

func TestPeerIDOfNobody(t *testing.T) {
	if got := PeerID(tls.ConnectionState{}); !got.IsZero() {
		t.Error(got)
	}
	for _, uris := range [][]*url.URL{nil, {testID("a").URL(), testID("b").URL()}, {{Scheme: "https", Host: "x"}}} {
		if got := PeerID(tls.ConnectionState{PeerCertificates: []*x509.Certificate{{URIs: uris}}}); !got.IsZero() {
			t.Errorf("%v: %v", uris, got)
		}
	}
}

func TestNewRoots(t *testing.T) {
	a := newCA(t)
	for name, der := range map[string][][]byte{"none": nil, "empty": {}, "rubbish": {[]byte("rubbish")}, "one of two": {a.cert.Raw, {}}} {
		if _, err := NewRoots(der); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if r, err := NewRoots([][]byte{a.cert.Raw}); err != nil || len(r.DER) != 1 {
		t.Error(r, err)
	}
}

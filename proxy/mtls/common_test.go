package mtls

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tulle-mesh/tulle/mesh"
)

const testDomain = "test.local"

func testID(name string) mesh.ID {
	return mesh.ID{TrustDomain: testDomain, Namespace: "default", Account: name}
}

var serials atomic.Int64

// ca signs whatever it is told to.
type ca struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newCA(t testing.TB) *ca {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serials.Add(1)), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(10 * 365 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	key := newKey(t)
	return &ca{key: key, cert: sign(t, template, template, &key.PublicKey, key)}
}

func sign(t testing.TB, template, parent *x509.Certificate, key crypto.PublicKey, by crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, by)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func (a *ca) roots(t testing.TB) Roots { return rootsOf(t, a) }

func rootsOf(t testing.TB, list ...*ca) Roots {
	t.Helper()
	var der [][]byte
	for _, a := range list {
		der = append(der, a.cert.Raw)
	}
	roots, err := NewRoots(der)
	if err != nil {
		t.Fatal(err)
	}
	return roots
}

// leafFor returns what a good authority would sign.
func leafFor(id mesh.ID) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(serials.Add(1)), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(24 * time.Hour),
		URIs: []*url.URL{id.URL()}, KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
}

// issue returns a certificate for id with a new key; change may spoil it.
func (a *ca) issue(t testing.TB, id mesh.ID, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	template := leafFor(id)
	if change != nil {
		change(template)
	}
	key := newKey(t)
	cert := sign(t, template, a.cert, &key.PublicKey, a.key)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
}

func (a *ca) credentials(t testing.TB, name string) *Credentials {
	t.Helper()
	return NewCredentials(testID(name), a.issue(t, testID(name), nil), a.roots(t))
}

// shaken is how a handshake ended on both sides.
type shaken struct {
	client, server       error
	clientSaw, serverSaw tls.ConnectionState
}

func (s *shaken) ok() bool { return s.client == nil && s.server == nil }

// shake connects both sides on loopback and exchanges a byte each way, so
// that each learns of the other's refusal and of session tickets.
func shake(t testing.TB, client, server *tls.Config) *shaken {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	s := &shaken{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		raw, err := ln.Accept()
		if err != nil {
			s.server = err
			return
		}
		defer raw.Close()
		conn := tls.Server(raw, server)
		if s.server = conn.Handshake(); s.server != nil {
			return
		}
		s.serverSaw = conn.ConnectionState()
		_, s.server = conn.Read(make([]byte, 1))
		if s.server == nil {
			_, s.server = conn.Write([]byte("x"))
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	raw, err := new(net.Dialer).DialContext(ctx, "tcp4", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn := tls.Client(raw, client)
	if s.client = conn.HandshakeContext(ctx); s.client == nil {
		s.clientSaw = conn.ConnectionState()
		if _, s.client = conn.Write([]byte("x")); s.client == nil {
			_, s.client = conn.Read(make([]byte, 1))
		}
	}
	conn.Close()
	<-done
	return s
}

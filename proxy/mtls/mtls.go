// Package mtls holds what a proxy proves itself with and how it checks others:
// mutual TLS 1.3 under SPIFFE identities, keyed by the hybrid X25519MLKEM768.
package mtls

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/tulle-mesh/tulle/mesh"
)

// ErrOtherIdentity is what a dial returns when the peer proved an identity,
// but not the one that was expected behind the address.
var ErrOtherIdentity = errors.New("the peer is somebody else")

// Credentials are an immutable snapshot: who the workload is, and whom it
// trusts. A new certificate or a changed set of roots makes a new snapshot.
type Credentials struct {
	ID          mesh.ID
	TrustDomain string
	Leaf        tls.Certificate // with Leaf.Leaf set
	Roots       *x509.CertPool
	RootsDER    [][]byte

	server *tls.Config
}

// Source is where the newest credentials are found; nil before the first certificate.
type Source = mesh.Latest[Credentials]

// NewCredentials completes a snapshot.
func NewCredentials(id mesh.ID, leaf tls.Certificate, roots Roots) *Credentials {
	c := &Credentials{ID: id, TrustDomain: id.TrustDomain, Leaf: leaf, Roots: roots.Pool, RootsDER: roots.DER}
	c.server = c.config()
	c.server.ClientAuth = tls.RequireAnyClientCert
	c.server.NextProtos = []string{mesh.ALPNHTTP1, mesh.ALPNHTTP2, mesh.ALPNTCP, mesh.ALPNHTTP1First, mesh.ALPNTCPFirst}
	c.server.VerifyConnection = func(cs tls.ConnectionState) error {
		// A client that offers no protocol at all would get none, not an alert
		// (RFC 7301 section 3.2), and its bytes would be read as one it did not name.
		if !slices.Contains(c.server.NextProtos, cs.NegotiatedProtocol) {
			return errors.New("peer offers none of the mesh's protocols")
		}
		_, err := mesh.VerifyPeer(cs.PeerCertificates, c.Roots, c.TrustDomain, x509.ExtKeyUsageClientAuth, time.Now())
		return err
	}
	return c
}

// Server returns the configuration of the inbound side. It must not be changed.
func (c *Credentials) Server() *tls.Config { return c.server }

// Client returns a configuration for dialling the peer called want and
// speaking one of protos with it.
func (c *Credentials) Client(want mesh.ID, protos ...string) *tls.Config {
	conf := c.config()
	conf.NextProtos = protos
	conf.InsecureSkipVerify = true // VerifyConnection does more
	conf.VerifyConnection = func(cs tls.ConnectionState) error {
		if !slices.Contains(protos, cs.NegotiatedProtocol) {
			return fmt.Errorf("peer does not speak %s", protos[0])
		}
		got, err := mesh.VerifyPeer(cs.PeerCertificates, c.Roots, c.TrustDomain, x509.ExtKeyUsageServerAuth, time.Now())
		if err != nil {
			return err
		}
		if got != want {
			return fmt.Errorf("%w: expected %s, got %s", ErrOtherIdentity, want, got)
		}
		return nil
	}
	return conf
}

func (c *Credentials) config() *tls.Config {
	return &tls.Config{
		Certificates:     []tls.Certificate{c.Leaf},
		MinVersion:       tls.VersionTLS13,
		CurvePreferences: []tls.CurveID{tls.X25519MLKEM768},
		// Connections are kept, so there is little to gain from resuming
		// sessions, and much to check: each handshake proves both sides anew.
		SessionTicketsDisabled: true,
		// Small first records help browsers on slow links, not proxies side by side.
		DynamicRecordSizingDisabled: true,
	}
}

// verifyOwn returns why peers with the same roots would not take chain for id.
// A workload both dials and is dialled.
func verifyOwn(chain []*x509.Certificate, roots *x509.CertPool, id mesh.ID, now time.Time) error {
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		got, err := mesh.VerifyPeer(chain, roots, id.TrustDomain, usage, now)
		if err != nil {
			return fmt.Errorf("own certificate: %w", err)
		}
		if got != id {
			return fmt.Errorf("own certificate: %w: expected %s, got %s", ErrOtherIdentity, id, got)
		}
	}
	return nil
}

// check returns why peers with the same roots would not take c's certificate now.
func (c *Credentials) check(now time.Time) error {
	chain, err := parseChain(c.Leaf.Certificate)
	if err != nil {
		return err
	}
	return verifyOwn(chain, c.Roots, c.ID, now)
}

func parseChain(list [][]byte) ([]*x509.Certificate, error) {
	var chain []*x509.Certificate
	for _, der := range list {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("parse own certificate: %w", err)
		}
		chain = append(chain, cert)
	}
	return chain, nil
}

// PeerID returns the identity that the other end of a verified connection proved.
func PeerID(cs tls.ConnectionState) mesh.ID {
	if len(cs.PeerCertificates) == 0 || len(cs.PeerCertificates[0].URIs) != 1 {
		return mesh.ID{}
	}
	id, err := mesh.ParseID(cs.PeerCertificates[0].URIs[0].String())
	if err != nil {
		return mesh.ID{}
	}
	return id
}

// Roots is a set of trusted roots.
type Roots struct {
	Pool *x509.CertPool
	DER  [][]byte
}

// NewRoots parses a set of roots; an empty one is an error, since it would
// trust nobody for ever.
func NewRoots(der [][]byte) (Roots, error) {
	if len(der) == 0 {
		return Roots{}, errors.New("empty set of trusted roots")
	}
	pool := x509.NewCertPool()
	for _, b := range der {
		cert, err := x509.ParseCertificate(b)
		if err != nil {
			return Roots{}, fmt.Errorf("parse trusted root: %w", err)
		}
		pool.AddCert(cert)
	}
	return Roots{Pool: pool, DER: der}, nil
}

package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	mathrand "math/rand/v2"
	"net/url"
	"sync"
	"time"

	"github.com/tulle-mesh/tulle/mesh"
)

// ServerTLS returns the TLS side of the control plane's listener: it serves as
// id, with a certificate that renews itself. Callers may come without a
// certificate (they have none before their first Certify; Auth keeps them
// to that), but one that is shown must be good.
func ServerTLS(a *Authority, id mesh.ID) *tls.Config {
	own := &ownLeaf{authority: a, names: x509.Certificate{URIs: []*url.URL{id.URL()}}}
	return &tls.Config{
		MinVersion:       tls.VersionTLS13,
		CurvePreferences: []tls.CurveID{tls.X25519MLKEM768},
		GetCertificate:   own.get,
		ClientAuth:       tls.RequestClientCert, // verified below, more strictly than crypto/tls does
		VerifyConnection: func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 {
				return nil
			}
			_, err := verifyCaller(a, state)
			return err
		},
		// A proxy connects once in an hour; what resumption saves is not worth its secrets.
		SessionTicketsDisabled: true,
	}
}

// ReplicaTLS returns the TLS side of a replica of the control plane that calls
// another one: both prove to be the control plane.
func ReplicaTLS(a *Authority) *tls.Config {
	control := mesh.ControlID(a.TrustDomain())
	own := &ownLeaf{authority: a, names: x509.Certificate{URIs: []*url.URL{control.URL()}}}
	return &tls.Config{
		MinVersion:           tls.VersionTLS13,
		CurvePreferences:     []tls.CurveID{tls.X25519MLKEM768},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return own.get(nil) },
		InsecureSkipVerify:   true, // VerifyConnection does more
		VerifyConnection: func(state tls.ConnectionState) error {
			roots := a.Roots()
			got, err := mesh.VerifyPeer(state.PeerCertificates, roots.Pool, roots.TrustDomain, x509.ExtKeyUsageServerAuth, a.Now())
			if err == nil && got != control {
				err = fmt.Errorf("another replica shows the identity %s", got)
			}
			return err
		},
	}
}

// HostTLS returns the TLS side of a listener for clients that know the control
// plane by host names, such as the API server that calls a webhook. Its
// certificate renews itself.
func HostTLS(a *Authority, hosts ...string) *tls.Config {
	own := &ownLeaf{authority: a, names: x509.Certificate{DNSNames: hosts}}
	return &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: own.get}
}

// verifyCaller returns who is at the other end of a connection, by the roots
// and the clock of this moment.
func verifyCaller(a *Authority, state tls.ConnectionState) (mesh.ID, error) {
	roots := a.Roots()
	return mesh.VerifyPeer(state.PeerCertificates, roots.Pool, roots.TrustDomain, x509.ExtKeyUsageClientAuth, a.Now())
}

// ownLeaf is the control plane's certificate, signed when it is first needed
// and again when it is due: signing is local and takes microseconds, so no
// goroutine has to watch over it.
type ownLeaf struct {
	authority *Authority
	names     x509.Certificate // its names, and nothing else

	mu    sync.Mutex
	leaf  *tls.Certificate
	by    *x509.Certificate // what signed leaf
	renew time.Time
}

func (o *ownLeaf) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := o.authority.Now()
	by := o.authority.signer().cert
	if o.leaf != nil && now.Before(o.renew) && by.Equal(o.by) {
		return o.leaf, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := o.names
	issued, err := o.authority.signKey(&key.PublicKey, &template, now)
	if err != nil {
		return nil, err
	}
	o.leaf = &tls.Certificate{Certificate: issued.Chain, PrivateKey: key}
	o.by = by
	o.renew = mesh.RenewAt(issued.NotBefore, issued.NotAfter, mathrand.Float64())
	return o.leaf, nil
}

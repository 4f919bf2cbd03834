package identity

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
)

// Roots is the whole set of trusted roots at one moment. It is immutable.
type Roots struct {
	Revision     uint64 // grows with each change in the life of one Authority
	TrustDomain  string
	Certificates []*x509.Certificate // the one that signs comes first
	Pool         *x509.CertPool      // of Certificates
}

func newRoots(revision uint64, trustDomain string, certs []*x509.Certificate) *Roots {
	pool := x509.NewCertPool()
	for _, cert := range certs {
		pool.AddCert(cert)
	}
	return &Roots{Revision: revision, TrustDomain: trustDomain, Certificates: certs, Pool: pool}
}

// PEM returns the certificates in the form of ca.crt.
func (r *Roots) PEM() []byte { return encodeCertificates(r.Certificates) }

// Message returns the set as the API carries it.
func (r *Roots) Message() *tullev1.Roots {
	m := &tullev1.Roots{Revision: r.Revision, TrustDomain: r.TrustDomain}
	for _, cert := range r.Certificates {
		m.Certificates = append(m.Certificates, cert.Raw)
	}
	return m
}

func encodeCertificates(certs []*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, cert := range certs {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}) // a bytes.Buffer cannot fail
	}
	return b.Bytes()
}

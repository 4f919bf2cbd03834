package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"

	"github.com/tulle-mesh/tulle/mesh"
)

// maxCSRSize bounds a CSR in bytes of DER; one with a P-256 key and a SPIFFE ID
// has about 350.
const maxCSRSize = 4 << 10

// ErrCSR is wrapped by every error about a CSR that must not be signed.
var ErrCSR = errors.New("CSR refused")

var (
	oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}
	emptySubject      = []byte{0x30, 0x00} // SEQUENCE of nothing
)

// readCSR returns the key to certify. Whatever else a CSR asks for would be
// ignored by the signing; but a caller that asks for something it does not get
// is broken or hostile, and either way is better told at once.
func readCSR(der []byte, id mesh.ID) (*ecdsa.PublicKey, error) {
	if len(der) > maxCSRSize {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrCSR, len(der), maxCSRSize)
	}
	// Refuses trailing data and duplicate extensions, too.
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCSR, err)
	}
	key, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("%w: the key is %s, only ECDSA P-256 is allowed", ErrCSR, csr.PublicKeyAlgorithm)
	}
	switch csr.SignatureAlgorithm {
	case x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512:
	default: // CheckSignature would let SHA-1 pass
		return nil, fmt.Errorf("%w: signed by %s", ErrCSR, csr.SignatureAlgorithm)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("%w: the caller does not hold the key: %w", ErrCSR, err)
	}
	if err := checkRequestedNames(csr, id); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCSR, err)
	}
	return key, nil
}

func checkRequestedNames(csr *x509.CertificateRequest, id mesh.ID) error {
	if !bytes.Equal(csr.RawSubject, emptySubject) {
		return fmt.Errorf("asks for the subject %q, it must be empty", csr.Subject)
	}
	for _, ext := range csr.Extensions {
		if !ext.Id.Equal(oidSubjectAltName) {
			return fmt.Errorf("asks for extension %s, only a subject alternative name is allowed", ext.Id)
		}
	}
	name, err := mesh.SoleName(csr.Extensions)
	switch {
	case errors.Is(err, mesh.ErrNoName) && len(csr.Extensions) == 0:
		return nil
	case err != nil:
		return err
	case name != id.String():
		return fmt.Errorf("asks for %q, but the caller is %s", name, id)
	}
	return nil
}

package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/tulle-mesh/tulle/mesh"
)

// KeyPair is an authority as a Secret of type kubernetes.io/tls holds it.
type KeyPair struct {
	Certificates []byte // tls.crt: PEM, the one that signs first, then intermediates up to its root
	Key          []byte // tls.key: PEM, ECDSA P-256
	Roots        []byte // ca.crt: PEM of further trusted roots; may be empty
}

// NewKeyPair makes the key and the root of a new authority.
func NewKeyPair(trustDomain string, now time.Time) (KeyPair, error) {
	if err := mesh.ControlID(trustDomain).Validate(); err != nil {
		return KeyPair{}, err
	}
	root, err := newSigner(trustDomain, now)
	if err != nil {
		return KeyPair{}, fmt.Errorf("create the authority: %w", err)
	}
	key, err := encodeKey(root.key)
	certs := encodeCertificates([]*x509.Certificate{root.cert})
	return KeyPair{Certificates: certs, Key: key, Roots: certs}, err
}

// OpenKeyPair returns an authority that signs with a key pair kept by somebody
// else. Use replaces it.
func OpenKeyPair(config Config, pair KeyPair) (*Authority, error) {
	a, err := blank(&config)
	if err != nil {
		return nil, err
	}
	a.roots.Store(newRoots(0, a.trustDomain, nil))
	return a, a.Use(pair)
}

// Use makes a key pair the one that signs, and its roots the trusted ones, from
// now on. On an error nothing changes.
//
// A root that was trusted until now is trusted on, as long as it is in the
// pair's Roots: whoever brings a new authority keeps the old one's certificate
// there until the last leaf it signed has ended.
func (a *Authority) Use(pair KeyPair) error {
	signer, roots, err := a.readPair(pair)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.current, a.next = signer, nil
	if slices.EqualFunc(roots, a.roots.Load().Certificates, (*x509.Certificate).Equal) {
		return nil
	}
	a.publishLocked(roots)
	return nil
}

func (a *Authority) readPair(pair KeyPair) (signer, []*x509.Certificate, error) {
	key, err := decodeAnyKey(pair.Key)
	if err != nil {
		return signer{}, nil, fmt.Errorf("tls.key: %w", err)
	}
	chain, err := decodeCertificates(bytes.TrimSpace(pair.Certificates))
	if err != nil {
		return signer{}, nil, fmt.Errorf("tls.crt: %w", err)
	}
	if len(chain) == 0 {
		return signer{}, nil, errors.New("tls.crt: no certificate in it")
	}
	if !key.PublicKey.Equal(chain[0].PublicKey) {
		return signer{}, nil, errors.New("tls.crt: its first certificate does not belong to tls.key")
	}
	extra, err := decodeCertificates(bytes.TrimSpace(pair.Roots))
	if err != nil {
		return signer{}, nil, fmt.Errorf("ca.crt: %w", err)
	}
	if err := checkIssuer(chain[0], a.trustDomain, a.now()); err != nil {
		return signer{}, nil, fmt.Errorf("tls.crt: %w", err)
	}
	s := signer{key: key, cert: chain[0]}
	var roots []*x509.Certificate
	for i, cert := range slices.Concat(chain, extra) {
		switch {
		case !isSelfSigned(cert):
			if i < len(chain) {
				s.intermediates = append(s.intermediates, cert)
			}
		case checkIssuer(cert, a.trustDomain, a.now()) != nil: // an old root that has ended
		case !slices.ContainsFunc(roots, cert.Equal):
			roots = append(roots, cert)
		}
	}
	if len(roots) > maxRoots {
		return signer{}, nil, tooManyRoots()
	}
	return s, roots, checkChain(s, roots, a.now())
}

// checkChain reports why what the signer signs would not be trusted.
func checkChain(s signer, roots []*x509.Certificate, now time.Time) error {
	options := x509.VerifyOptions{
		Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}
	for _, cert := range roots {
		options.Roots.AddCert(cert)
	}
	for _, cert := range s.intermediates {
		options.Intermediates.AddCert(cert)
	}
	if _, err := s.cert.Verify(options); err != nil {
		return fmt.Errorf("tls.crt: it leads to no root in tls.crt or ca.crt: %w", err)
	}
	return nil
}

// checkIssuer reports why cert cannot sign for the trust domain. Unlike the
// roots we make, one that is brought may be an intermediate, and need not name
// the trust domain; if it does, it is to be ours.
func checkIssuer(cert *x509.Certificate, trustDomain string, now time.Time) error {
	if err := checkAuthority(cert, now); err != nil {
		return err
	}
	name, err := mesh.SoleName(cert.Extensions)
	if err == nil && name != "spiffe://"+trustDomain {
		return fmt.Errorf("it is of the trust domain %q, not of %q", name, "spiffe://"+trustDomain)
	}
	return nil
}

// decodeAnyKey also reads what other programs write: SEC 1 (RFC 5915).
func decodeAnyKey(content []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(content)
	if block != nil && block.Type == "EC PRIVATE KEY" {
		key, err := x509.ParseECPrivateKey(block.Bytes)
		if err != nil {
			return nil, err
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, err
		}
		content = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	}
	key, err := decodeKey(bytes.TrimSpace(content))
	if err != nil {
		return nil, fmt.Errorf("%w (cert-manager: privateKey.algorithm: ECDSA, size: 256)", err)
	}
	return key, nil
}

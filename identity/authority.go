package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tulle-mesh/tulle/mesh"
)

const (
	rootLife = 10 * 365 * 24 * time.Hour

	// LeafLife is how long a workload's certificate is good for from its signing on.
	LeafLife = 24 * time.Hour

	// backDate is how far before its signing a certificate becomes valid: a peer
	// whose clock is slow by less than this still accepts it. Machines without
	// working NTP drift by minutes, hence not the usual few seconds. It costs
	// nothing: the key is new, so nobody could have used it in that time. (Peers
	// whose clocks are fast are covered at the other end, by renewal at 2/3.)
	backDate = 15 * time.Minute

	// maxRoots bounds the set of trusted roots: a rotation needs two.
	maxRoots = 8
)

// Config is what Open needs.
type Config struct {
	// Dir holds ca.key and ca.crt. Empty: keep them in memory only; every
	// certificate is then worthless after a restart.
	Dir string
	// TrustDomain is the domain of every identity signed, "tulle.local".
	TrustDomain string
	// Now is the clock; nil: time.Now.
	Now func() time.Time
	// Log is told what an operator should know; nil: slog.Default().
	Log *slog.Logger
}

// Validate reports what is wrong with the Config.
func (c Config) Validate() error {
	return mesh.ControlID(c.TrustDomain).Validate()
}

// signer is a root with its key, or an intermediate of somebody else's root.
type signer struct {
	key           *ecdsa.PrivateKey
	cert          *x509.Certificate
	intermediates []*x509.Certificate // from cert up to its root, if cert is none itself
}

// Authority signs certificates of one trust domain. Many goroutines may use it
// at once.
//
// A root is replaced in four steps, with everything running:
//
//	Prepare (the new root is trusted) -> Promote (it signs) -> wait LeafLife -> RemoveRoot (the old one)
type Authority struct {
	trustDomain string
	now         func() time.Time
	store       *store // nil: in memory
	roots       mesh.Latest[Roots]

	mu      sync.Mutex // guards what follows, and every change of roots
	current signer
	next    *signer // prepared, not yet signing
}

// Open loads the authority kept in the Config's Dir, or creates it there.
func Open(config Config) (*Authority, error) {
	var s *store
	if config.Dir != "" {
		s = &store{dir: config.Dir, write: writeAll}
	}
	return open(config, s)
}

// blank returns an Authority without a signer.
func blank(config *Config) (*Authority, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Log == nil {
		config.Log = slog.Default()
	}
	return &Authority{trustDomain: config.TrustDomain, now: config.Now}, nil
}

func open(config Config, s *store) (*Authority, error) {
	a, err := blank(&config)
	if err != nil {
		return nil, err
	}
	a.store = s
	if s == nil {
		return a, a.create()
	}
	unlock, err := s.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := a.load(config.Log); err != nil {
		return nil, err
	}
	return a, nil
}

// TrustDomain returns the domain of every identity signed.
func (a *Authority) TrustDomain() string { return a.trustDomain }

// Now returns the time by the authority's clock.
func (a *Authority) Now() time.Time { return a.now() }

// Roots returns the trusted roots of this moment.
func (a *Authority) Roots() *Roots { return a.roots.Load() }

// Watch returns the trusted roots and a channel that is closed once they changed.
func (a *Authority) Watch() (*Roots, <-chan struct{}) { return a.roots.Watch() }

// Issued is a signed certificate.
type Issued struct {
	Chain               [][]byte // DER, leaf first, root not included
	NotBefore, NotAfter time.Time
}

// Sign certifies the key of a CSR (DER, PKCS #10) for id, which the caller must
// have proved to be. Errors about the CSR wrap ErrCSR.
func (a *Authority) Sign(csrDER []byte, id mesh.ID, now time.Time) (*Issued, error) {
	if err := a.checkID(id); err != nil {
		return nil, err
	}
	key, err := readCSR(csrDER, id)
	if err != nil {
		return nil, err
	}
	return a.signKey(key, &x509.Certificate{URIs: []*url.URL{id.URL()}}, now)
}

func (a *Authority) checkID(id mesh.ID) error {
	if err := id.Validate(); err != nil {
		return fmt.Errorf("sign for %q: %w", id, err)
	}
	if id.TrustDomain != a.trustDomain {
		return fmt.Errorf("sign for %s: not in the trust domain %s", id, a.trustDomain)
	}
	return nil
}

// signKey certifies key for the names in template, which it completes.
func (a *Authority) signKey(key *ecdsa.PublicKey, template *x509.Certificate, now time.Time) (*Issued, error) {
	by := a.signer()
	template.SerialNumber = newSerial()
	template.NotBefore = now.Add(-backDate).Truncate(time.Second)
	template.NotAfter = now.Add(LeafLife).Truncate(time.Second)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	template.BasicConstraintsValid = true // and not a CA
	if template.NotAfter.After(by.cert.NotAfter) {
		template.NotAfter = by.cert.NotAfter
	}
	if !template.NotAfter.After(now) {
		return nil, fmt.Errorf("sign for %s: the root ended on %s", names(template), by.cert.NotAfter.Format(time.DateOnly))
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by.cert, key, by.key)
	if err != nil {
		return nil, fmt.Errorf("sign for %s: %w", names(template), err)
	}
	issued := &Issued{Chain: [][]byte{der}, NotBefore: template.NotBefore, NotAfter: template.NotAfter}
	for _, cert := range by.intermediates {
		issued.Chain = append(issued.Chain, cert.Raw)
	}
	return issued, nil
}

func (a *Authority) signer() signer {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.current
}

func names(cert *x509.Certificate) string {
	list := slices.Clone(cert.DNSNames)
	for _, u := range cert.URIs {
		list = append(list, u.String())
	}
	return strings.Join(list, ", ")
}

// newSerial draws 128 random bits (CA/Browser Forum asks for 64, RFC 5280
// 4.1.2.2 for a positive number).
func newSerial() *big.Int {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[15] |= 1      // never zero
	return new(big.Int).SetBytes(b[:])
}

func newSigner(trustDomain string, now time.Time) (signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return signer{}, err
	}
	return selfSign(key, trustDomain, now)
}

func selfSign(key *ecdsa.PrivateKey, trustDomain string, now time.Time) (signer, error) {
	template := &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               pkix.Name{CommonName: "Tulle root of " + trustDomain},
		URIs:                  []*url.URL{{Scheme: "spiffe", Host: trustDomain}}, // X.509-SVID section 2
		NotBefore:             now.Add(-backDate).Truncate(time.Second),
		NotAfter:              now.Add(rootLife).Truncate(time.Second),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true, // signs leaves only
	}
	if len(template.Subject.CommonName) > 64 { // RFC 5280 ub-common-name
		template.Subject.CommonName = "Tulle root"
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return signer{}, err
	}
	cert, err := x509.ParseCertificate(der)
	return signer{key: key, cert: cert}, err
}

func (a *Authority) create() error {
	root, err := newSigner(a.trustDomain, a.now())
	if err != nil {
		return fmt.Errorf("create the authority: %w", err)
	}
	if a.store != nil {
		if err := a.store.create(root); err != nil {
			return err
		}
	}
	a.current = root
	a.roots.Store(newRoots(1, a.trustDomain, []*x509.Certificate{root.cert}))
	return nil
}

// Prepare makes a root that is trusted from now on, but does not sign yet, and
// returns it. An earlier one that was not promoted is forgotten.
func (a *Authority) Prepare() (*x509.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	next, err := newSigner(a.trustDomain, a.now())
	if err != nil {
		return nil, fmt.Errorf("prepare a root: %w", err)
	}
	certs := a.roots.Load().Certificates
	if a.next != nil {
		certs = without(certs, a.next.cert)
	}
	certs = append(slices.Clip(certs), next.cert)
	if len(certs) > maxRoots {
		return nil, tooManyRoots()
	}
	if a.store != nil {
		if err := a.store.writeNext(next.key); err != nil {
			return nil, err
		}
		a.next = nil // its key is no longer on disk
	}
	if err := a.setRootsLocked(certs); err != nil {
		return nil, err
	}
	a.next = &next
	return next.cert, nil
}

// Promote lets the prepared root sign from now on. Every proxy should have
// heard of it by then; Prepare's set of roots is pushed at once.
func (a *Authority) Promote() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.next == nil {
		return errors.New("promote a root: none is prepared")
	}
	if a.store != nil {
		if err := a.store.promote(); err != nil {
			return err
		}
	}
	next := *a.next
	a.current, a.next = next, nil
	// ca.crt may keep its order: loading finds the signer by its key.
	certs := append([]*x509.Certificate{next.cert}, without(a.roots.Load().Certificates, next.cert)...)
	a.publishLocked(certs)
	return nil
}

// AddRoot trusts one more root, for instance that of an authority which takes
// over from this one. A root that is trusted already is no error.
func (a *Authority) AddRoot(cert *x509.Certificate) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := checkRoot(cert, a.trustDomain, a.now()); err != nil {
		return fmt.Errorf("add a root: %w", err)
	}
	certs := a.roots.Load().Certificates
	if slices.ContainsFunc(certs, cert.Equal) {
		return nil
	}
	if len(certs) >= maxRoots {
		return tooManyRoots()
	}
	return a.setRootsLocked(append(slices.Clip(certs), cert))
}

// RemoveRoot stops trusting a root, and with it every leaf it signed. The root
// that signs cannot be removed.
func (a *Authority) RemoveRoot(cert *x509.Certificate) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if cert.Equal(a.current.cert) {
		return errors.New("remove a root: this one signs; prepare and promote another one first")
	}
	certs := a.roots.Load().Certificates
	kept := without(certs, cert)
	if len(kept) == len(certs) {
		return errors.New("remove a root: it is not among the trusted ones")
	}
	if a.next != nil && cert.Equal(a.next.cert) {
		a.next = nil // its key on disk has no certificate any more: ignored by Open
	}
	return a.setRootsLocked(kept)
}

func (a *Authority) setRootsLocked(certs []*x509.Certificate) error {
	if a.store != nil {
		if err := a.store.writeRoots(certs); err != nil {
			return err
		}
	}
	a.publishLocked(certs)
	return nil
}

func (a *Authority) publishLocked(certs []*x509.Certificate) {
	a.roots.Store(newRoots(a.roots.Load().Revision+1, a.trustDomain, certs))
}

func without(certs []*x509.Certificate, cert *x509.Certificate) []*x509.Certificate {
	return slices.DeleteFunc(slices.Clone(certs), cert.Equal)
}

func tooManyRoots() error {
	return fmt.Errorf("add a root: %d are trusted already; remove one first", maxRoots)
}

// checkRoot reports why cert cannot be a root of the trust domain.
func checkRoot(cert *x509.Certificate, trustDomain string, now time.Time) error {
	if err := checkAuthority(cert, now); err != nil {
		return err
	}
	if !isSelfSigned(cert) {
		return errors.New("it is not self-signed")
	}
	name, err := mesh.SoleName(cert.Extensions)
	if err != nil {
		return fmt.Errorf("it names no trust domain: %w", err)
	}
	if name != "spiffe://"+trustDomain {
		return fmt.Errorf("it is of the trust domain %q, not of %q", name, "spiffe://"+trustDomain)
	}
	return nil
}

func isSelfSigned(cert *x509.Certificate) bool {
	return bytes.Equal(cert.RawIssuer, cert.RawSubject) && cert.CheckSignatureFrom(cert) == nil
}

// checkAuthority reports why cert cannot sign certificates now.
func checkAuthority(cert *x509.Certificate, now time.Time) error {
	key, ok := cert.PublicKey.(*ecdsa.PublicKey)
	switch {
	case !cert.BasicConstraintsValid || !cert.IsCA || cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return errors.New("it is not an authority's certificate")
	case !ok || key.Curve != elliptic.P256():
		return fmt.Errorf("its key is %s, only ECDSA P-256 is supported", cert.PublicKeyAlgorithm)
	case now.Before(cert.NotBefore):
		return fmt.Errorf("it is valid from %s on, but the clock here says %s: set the clock", cert.NotBefore.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	case now.After(cert.NotAfter):
		return fmt.Errorf("it ended on %s", cert.NotAfter.UTC().Format(time.RFC3339))
	}
	return nil
}

package mesh

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Bounds of what a peer may present. A leaf of Tulle's own authority has about
// 500 bytes and comes alone; the rest is room for intermediates.
const (
	maxChainLength     = 4
	maxCertificateSize = 16 << 10 // bytes of DER
)

// PeerReason says in one word why a peer was refused; it labels metrics.
type PeerReason string

// The reasons of a PeerError.
const (
	NoCertificate    PeerReason = "no-certificate"
	ChainTooLong     PeerReason = "chain-too-long"
	CertificateSize  PeerReason = "certificate-too-large"
	BadName          PeerReason = "bad-name"
	OtherTrustDomain PeerReason = "other-trust-domain"
	NotYetValid      PeerReason = "not-yet-valid"
	Expired          PeerReason = "expired"
	WrongKey         PeerReason = "wrong-key"
	WrongUsage       PeerReason = "wrong-usage"
	Untrusted        PeerReason = "untrusted"
)

// PeerError tells why the certificate of a peer was refused.
type PeerError struct {
	Reason PeerReason
	Err    error // the details; quotes whatever the peer wrote
}

// Error returns the reason and the details.
func (e *PeerError) Error() string {
	return "peer certificate refused (" + string(e.Reason) + "): " + e.Err.Error()
}

// Unwrap returns the details.
func (e *PeerError) Unwrap() error { return e.Err }

func refuse(reason PeerReason, format string, args ...any) *PeerError {
	return &PeerError{Reason: reason, Err: fmt.Errorf(format, args...)}
}

// VerifyPeer returns who the peer that presented chain (leaf first) is, or a
// *PeerError. Both sides of every connection of the mesh decide by it, in
// tls.Config.VerifyConnection, which unlike VerifyPeerCertificate also runs for
// resumed sessions. usage is the role the peer plays: ExtKeyUsageServerAuth
// when we dialled it, ExtKeyUsageClientAuth when it dialled us.
//
// It asks for more than X.509 path validation (RFC 5280 section 6) does: a leaf
// as the X.509-SVID standard, sections 2 to 4, describes it, with one name and
// no other, and an ECDSA P-256 key.
func VerifyPeer(chain []*x509.Certificate, roots *x509.CertPool, trustDomain string, usage x509.ExtKeyUsage, now time.Time) (ID, error) {
	// The cheap checks come first: nothing below is done for a peer whose
	// certificates could not be right anyway.
	if err := checkChainBounds(chain); err != nil {
		return ID{}, err
	}
	leaf := chain[0]
	id, err := leafID(leaf, trustDomain)
	if err != nil {
		return ID{}, err
	}
	for _, check := range []*PeerError{checkValidity(leaf, now), checkKeys(chain), checkUsage(leaf, usage)} {
		if check != nil {
			return ID{}, check
		}
	}
	if err := checkPath(chain, roots, usage, now); err != nil {
		return ID{}, err
	}
	return id, nil
}

func checkChainBounds(chain []*x509.Certificate) error {
	if len(chain) == 0 {
		return refuse(NoCertificate, "none was presented")
	}
	if len(chain) > maxChainLength {
		return refuse(ChainTooLong, "%d certificates, at most %d are allowed", len(chain), maxChainLength)
	}
	for i, cert := range chain {
		if len(cert.Raw) > maxCertificateSize {
			return refuse(CertificateSize, "certificate %d has %d bytes, at most %d are allowed", i, len(cert.Raw), maxCertificateSize)
		}
	}
	return nil
}

func leafID(leaf *x509.Certificate, trustDomain string) (ID, error) {
	name, err := SoleName(leaf.Extensions)
	if err != nil {
		return ID{}, &PeerError{Reason: BadName, Err: err}
	}
	id, err := ParseID(name)
	if err != nil {
		return ID{}, &PeerError{Reason: BadName, Err: err}
	}
	if id.TrustDomain != trustDomain {
		return ID{}, refuse(OtherTrustDomain, "%s is not in our trust domain %q", id, trustDomain)
	}
	return id, nil
}

func checkValidity(leaf *x509.Certificate, now time.Time) *PeerError {
	if now.Before(leaf.NotBefore) {
		return refuse(NotYetValid, "valid from %s, but the clock here says %s: compare the clocks of the two machines",
			leaf.NotBefore.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	if now.After(leaf.NotAfter) {
		return refuse(Expired, "valid until %s, but the clock here says %s: its proxy could not renew it, or the clocks differ",
			leaf.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return nil
}

func checkKeys(chain []*x509.Certificate) *PeerError {
	for i, cert := range chain {
		if key, ok := cert.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
			return refuse(WrongKey, "certificate %d has a %s key, only ECDSA P-256 is allowed", i, cert.PublicKeyAlgorithm)
		}
	}
	return nil
}

// checkUsage demands what x509.Certificate.Verify lets pass: a leaf without any
// extended key usage counts as good for all of them there.
func checkUsage(leaf *x509.Certificate, usage x509.ExtKeyUsage) *PeerError {
	switch {
	case leaf.IsCA || leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return refuse(WrongUsage, "it is an authority's certificate, not a workload's")
	case leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return refuse(WrongUsage, "its key usage lacks digitalSignature")
	case !slices.Contains(leaf.ExtKeyUsage, usage):
		return refuse(WrongUsage, "its extended key usage lacks the role it plays (%s)", usageName(usage))
	}
	return nil
}

func usageName(usage x509.ExtKeyUsage) string {
	switch usage {
	case x509.ExtKeyUsageServerAuth:
		return "serverAuth"
	case x509.ExtKeyUsageClientAuth:
		return "clientAuth"
	}
	return fmt.Sprint(int(usage))
}

func checkPath(chain []*x509.Certificate, roots *x509.CertPool, usage x509.ExtKeyUsage, now time.Time) error {
	if roots == nil {
		// x509 would fall back on the system's roots: the whole public web.
		return refuse(Untrusted, "no trusted roots are known here yet")
	}
	intermediates := x509.NewCertPool()
	for _, cert := range chain[1:] {
		intermediates.AddCert(cert)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: intermediates,
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{usage},
	})
	if err == nil {
		return nil
	}
	reason := Untrusted
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		reason = Expired // of an intermediate or a root
	}
	return &PeerError{Reason: reason, Err: err}
}

var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// ErrNoName is what SoleName returns when there is no subject alternative name.
var ErrNoName = errors.New("it has no URI as subject alternative name")

// SoleName returns the URI of the one subject alternative name among the
// extensions of a certificate or a CSR, byte for byte. Any second name of
// whatever kind is an error.
//
// It reads the DER itself: x509 keeps URIs only as url.URL, which lower-cases
// schemes and drops empty fragments, so that several spellings would read as
// one, and it skips the kinds of names it does not know.
func SoleName(extensions []pkix.Extension) (string, error) {
	i := slices.IndexFunc(extensions, func(e pkix.Extension) bool { return e.Id.Equal(oidSubjectAltName) })
	if i < 0 {
		return "", ErrNoName
	}
	if len(extensions[i].Value) > maxCertificateSize {
		return "", fmt.Errorf("its subject alternative names have %d bytes", len(extensions[i].Value))
	}
	// RFC 5280 4.2.1.6: SubjectAltName ::= SEQUENCE SIZE (1..MAX) OF GeneralName
	var names []asn1.RawValue
	if rest, err := asn1.Unmarshal(extensions[i].Value, &names); err != nil || len(rest) != 0 {
		return "", errors.New("its subject alternative names are not valid DER")
	}
	const uniformResourceIdentifier = 6
	switch {
	case len(names) == 0:
		return "", ErrNoName
	case len(names) > 1:
		return "", fmt.Errorf("it has %d subject alternative names, exactly one is allowed", len(names))
	case names[0].Class != asn1.ClassContextSpecific || names[0].Tag != uniformResourceIdentifier || names[0].IsCompound:
		return "", errors.New("its subject alternative name is not a URI")
	}
	return string(names[0].Bytes), nil
}

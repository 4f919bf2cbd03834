package mesh

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"
)

const testDomain = "tulle.local"

var testNow = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

// authority is a certificate with its key, for tests.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func newKey(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newRoot(t *testing.T) *authority {
	t.Helper()
	return issue(t, nil, newKey(t), rootTemplate())
}

func rootTemplate() *x509.Certificate {
	return &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "root"},
		NotBefore:             testNow.Add(-time.Hour),
		NotAfter:              testNow.Add(1000 * time.Hour),
		KeyUsage:              x509.KeyUsageCertSign,
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
}

// issue signs template by the parent, or by itself without one.
func issue(t *testing.T, parent *authority, key crypto.Signer, template *x509.Certificate) *authority {
	t.Helper()
	der, err := issueDER(parent, key, template)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert: cert, key: key}
}

func issueDER(parent *authority, key crypto.Signer, template *x509.Certificate) ([]byte, error) {
	if parent == nil {
		return x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	}
	return x509.CreateCertificate(rand.Reader, template, parent.cert, key.Public(), parent.key)
}

func leafTemplate() *x509.Certificate {
	id := ID{TrustDomain: testDomain, Namespace: "default", Account: "web"}
	return &x509.Certificate{
		SerialNumber:          big.NewInt(2),
		NotBefore:             testNow.Add(-time.Hour),
		NotAfter:              testNow.Add(23 * time.Hour),
		URIs:                  []*url.URL{id.URL()},
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
}

// generalName is one entry of a subject alternative name, written byte for byte.
type generalName struct {
	tag  int
	text string
}

func san(t testing.TB, names ...generalName) pkix.Extension {
	t.Helper()
	var raw []asn1.RawValue
	for _, n := range names {
		raw = append(raw, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: n.tag, Bytes: []byte(n.text)})
	}
	der, err := asn1.Marshal(raw)
	if err != nil {
		t.Fatal(err)
	}
	return pkix.Extension{Id: oidSubjectAltName, Critical: true, Value: der}
}

// named lets a leaf carry exactly this URI.
func named(t *testing.T, uri string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.URIs = nil
		c.ExtraExtensions = append(c.ExtraExtensions, san(t, generalName{6, uri}))
	}
}

func TestVerifyPeerLeaf(t *testing.T) {
	root := newRoot(t)
	const good = "spiffe://tulle.local/ns/default/sa/web"
	// x509 itself refuses to parse some; no such peer gets as far as VerifyPeer.
	const unparsable PeerReason = "unparsable"
	tests := []struct {
		name   string
		change func(*x509.Certificate)
		key    crypto.Signer // nil: ECDSA P-256
		by     *authority    // nil: root
		want   PeerReason    // "": accepted
	}{
		{name: "legal"},
		{name: "legal, name byte for byte", change: named(t, good)},
		{name: "no basic constraints", change: func(c *x509.Certificate) { c.BasicConstraintsValid = false }},

		{name: "expired", change: func(c *x509.Certificate) { c.NotAfter = testNow.Add(-time.Second) }, want: Expired},
		{name: "not yet valid", change: func(c *x509.Certificate) { c.NotBefore = testNow.Add(time.Second) }, want: NotYetValid},
		{name: "other root", by: newRoot(t), want: Untrusted},
		{name: "CA:true", change: func(c *x509.Certificate) { c.IsCA = true }, want: WrongUsage},
		{name: "may sign certificates", change: func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }, want: WrongUsage},
		{name: "no digitalSignature", change: func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement }, want: WrongUsage},
		{name: "no key usage", change: func(c *x509.Certificate) { c.KeyUsage = 0 }, want: WrongUsage},
		{name: "client only", change: func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[1:] }, want: WrongUsage},
		{name: "no EKU", change: func(c *x509.Certificate) { c.ExtKeyUsage = nil }, want: WrongUsage},
		{name: "any EKU", change: func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }, want: WrongUsage},
		{name: "unknown critical extension", change: func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}}
		}, want: Untrusted},

		{name: "RSA-1024", key: rsaKey(t, 1024), want: WrongKey},
		{name: "RSA-2048", key: rsaKey(t, 2048), want: WrongKey},
		{name: "P-224", key: curveKey(t, elliptic.P224()), want: WrongKey},
		{name: "P-384", key: curveKey(t, elliptic.P384()), want: WrongKey},
		{name: "Ed25519", key: edKey(t), want: WrongKey},
		{name: "1 MB", change: func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Value: bytes.Repeat([]byte{0}, 1<<20)}}
		}, want: CertificateSize},

		{name: "no name", change: func(c *x509.Certificate) { c.URIs = nil }, want: BadName},
		{name: "two URIs", change: func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) }, want: BadName},
		{name: "DNS only", change: func(c *x509.Certificate) { c.URIs = nil; c.DNSNames = []string{"web.mesh"} }, want: BadName},
		{name: "and a DNS name", change: func(c *x509.Certificate) { c.DNSNames = []string{"web.mesh"} }, want: BadName},
		{name: "and an IP", change: func(c *x509.Certificate) { c.IPAddresses = []net.IP{{192, 0, 2, 1}} }, want: BadName},
		{name: "and an e-mail address", change: func(c *x509.Certificate) { c.EmailAddresses = []string{"a@example.com"} }, want: BadName},
		{name: "and a registered ID", change: func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{san(t, generalName{6, good}, generalName{8, "\x2a\x03"})}
		}, want: BadName},
		{name: "empty SAN", change: func(c *x509.Certificate) { c.URIs = nil; c.ExtraExtensions = []pkix.Extension{san(t)} }, want: BadName},
		{name: "wrong trust domain", change: named(t, "spiffe://other.local/ns/default/sa/web"), want: OtherTrustDomain},
		{name: "trust domain only", change: named(t, "spiffe://tulle.local"), want: BadName},
		{name: "%2f", change: named(t, "spiffe://tulle.local/ns/default/sa/web%2fx"), want: BadName},
		{name: "percent-encoded letter", change: named(t, "spiffe://tulle.local/ns/default/sa/%77eb"), want: BadName},
		{name: "trailing slash", change: named(t, good+"/"), want: BadName},
		{name: "upper case name", change: named(t, "spiffe://tulle.local/ns/default/sa/Web"), want: BadName},
		{name: "upper case domain", change: named(t, "spiffe://Tulle.local/ns/default/sa/web"), want: BadName},
		{name: "upper case scheme", change: named(t, "SPIFFE://tulle.local/ns/default/sa/web"), want: BadName},
		{name: "empty fragment", change: named(t, good+"#"), want: BadName},
		{name: "empty query", change: named(t, good+"?"), want: BadName},
		{name: "port", change: named(t, "spiffe://tulle.local:443/ns/default/sa/web"), want: BadName},
		{name: "user", change: named(t, "spiffe://u@tulle.local/ns/default/sa/web"), want: BadName},
		{name: "dot segment", change: named(t, "spiffe://tulle.local/ns/default/sa/../sa/web"), want: BadName},
		{name: "wildcard", change: named(t, "spiffe://tulle.local/ns/default/sa/*"), want: BadName},
		{name: "https", change: named(t, "https://tulle.local/ns/default/sa/web"), want: BadName},
		{name: "NUL", change: named(t, good+"\x00.evil"), want: unparsable},
		{name: "newline", change: named(t, good+"\n"), want: unparsable},
		{name: "not ASCII", change: named(t, "spiffe://tulle.local/ns/default/sa/wéb"), want: unparsable},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			template, key, by := leafTemplate(), tt.key, tt.by
			if tt.change != nil {
				tt.change(template)
			}
			if key == nil {
				key = newKey(t)
			}
			if by == nil {
				by = root
			}
			der, err := issueDER(by, key, template)
			if err != nil {
				t.Fatal(err)
			}
			leaf, err := x509.ParseCertificate(der)
			if err != nil {
				if tt.want != unparsable && tt.want != BadName {
					t.Fatalf("parse: %v, want it refused as %q", err, tt.want)
				}
				return
			}
			id, err := VerifyPeer([]*x509.Certificate{leaf}, pool(root), testDomain, x509.ExtKeyUsageServerAuth, testNow)
			checkReason(t, err, tt.want)
			if want := (ID{TrustDomain: testDomain, Namespace: "default", Account: "web"}); err == nil && id != want {
				t.Errorf("id = %v, want %v", id, want)
			}
			if err != nil && id != (ID{}) {
				t.Errorf("refused, and yet named %v", id)
			}
		})
	}
}

func TestVerifyPeerChain(t *testing.T) {
	root := newRoot(t)
	leaf := issue(t, root, newKey(t), leafTemplate())
	intermediate := issue(t, root, newKey(t), rootTemplate())
	below := issue(t, intermediate, newKey(t), leafTemplate())
	rsaIntermediate := issue(t, root, rsaKey(t, 2048), rootTemplate())
	expiredTemplate := rootTemplate()
	expiredTemplate.NotAfter = testNow.Add(-time.Minute)
	expired := issue(t, root, newKey(t), expiredTemplate)
	notCA := issue(t, leaf, newKey(t), leafTemplate()) // signed by another workload
	selfSigned := issue(t, nil, newKey(t), leafTemplate())
	deep := []*x509.Certificate{issue(t, root, newKey(t), rootTemplate()).cert}
	for range 9 {
		deep = append(deep, root.cert)
	}
	tests := []struct {
		name  string
		chain []*x509.Certificate
		roots *x509.CertPool
		want  PeerReason
	}{
		{"leaf", certs(leaf), pool(root), ""},
		{"leaf and root", certs(leaf, root), pool(root), ""},
		{"one of two roots", certs(leaf), pool(newRoot(t), root), ""},
		{"intermediate", certs(below, intermediate), pool(root), ""},
		{"intermediate missing", certs(below), pool(root), Untrusted},
		{"RSA intermediate", certs(issue(t, rsaIntermediate, newKey(t), leafTemplate()), rsaIntermediate), pool(root), WrongKey},
		{"expired intermediate", certs(issue(t, expired, newKey(t), leafTemplate()), expired), pool(root), Expired},
		{"signed by a workload", certs(notCA, leaf), pool(root), Untrusted},
		{"self-signed", certs(selfSigned), pool(root), Untrusted},
		{"self-signed, brings itself as root", certs(selfSigned, selfSigned), pool(root), Untrusted},
		{"the root itself", certs(root), pool(root), BadName},
		{"none", nil, pool(root), NoCertificate},
		{"ten", deep, pool(root), ChainTooLong},
		{"no roots", certs(leaf), x509.NewCertPool(), Untrusted},
		{"nil roots are not the system's", certs(leaf), nil, Untrusted},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := VerifyPeer(tt.chain, tt.roots, testDomain, x509.ExtKeyUsageClientAuth, testNow)
			checkReason(t, err, tt.want)
		})
	}
}

func TestVerifyPeerRole(t *testing.T) {
	root := newRoot(t)
	template := leafTemplate()
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	server := issue(t, root, newKey(t), template)
	_, err := VerifyPeer(certs(server), pool(root), testDomain, x509.ExtKeyUsageServerAuth, testNow)
	checkReason(t, err, "")
	_, err = VerifyPeer(certs(server), pool(root), testDomain, x509.ExtKeyUsageClientAuth, testNow)
	checkReason(t, err, WrongUsage)
	if !strings.Contains(err.Error(), "clientAuth") {
		t.Errorf("error %q does not name the role", err)
	}
}

func TestSoleNameGarbage(t *testing.T) {
	for name, value := range map[string][]byte{
		"empty":         {},
		"not DER":       {0x30, 0x82},
		"not a list":    {0x04, 0x01, 'x'},
		"trailing data": append(san(t, generalName{6, "spiffe://a"}).Value, 0),
		"too large":     san(t, generalName{6, strings.Repeat("a", maxCertificateSize)}).Value,
		"constructed":   {0x30, 0x03, 0xa6, 0x01, 'x'},
	} {
		if got, err := SoleName([]pkix.Extension{{Id: oidSubjectAltName, Value: value}}); err == nil {
			t.Errorf("%s: got %q, want an error", name, got)
		}
	}
	if _, err := SoleName(nil); !errors.Is(err, ErrNoName) {
		t.Errorf("without extensions: %v, want ErrNoName", err)
	}
}

func FuzzSoleName(f *testing.F) {
	f.Add(san(f, generalName{6, "spiffe://tulle.local/ns/default/sa/web"}).Value)
	f.Add(san(f, generalName{2, "web.mesh"}).Value)
	f.Add([]byte{0x30, 0x80})
	f.Fuzz(func(t *testing.T, value []byte) {
		name, err := SoleName([]pkix.Extension{{Id: oidSubjectAltName, Value: value}})
		if err == nil && len(name) >= len(value) {
			t.Errorf("name of %d bytes out of %d", len(name), len(value))
		}
	})
}

func checkReason(t *testing.T, err error, want PeerReason) {
	t.Helper()
	if want == "" {
		if err != nil {
			t.Errorf("refused: %v", err)
		}
		return
	}
	refused, ok := errors.AsType[*PeerError](err)
	if !ok || refused.Reason != want {
		t.Errorf("error %v, want reason %q", err, want)
	}
	if ok && len(refused.Error()) > 4096 {
		t.Errorf("error of %d bytes", len(refused.Error()))
	}
}

func certs(of ...*authority) []*x509.Certificate {
	var chain []*x509.Certificate
	for _, a := range of {
		chain = append(chain, a.cert)
	}
	return chain
}

func pool(roots ...*authority) *x509.CertPool {
	p := x509.NewCertPool()
	for _, r := range roots {
		p.AddCert(r.cert)
	}
	return p
}

func rsaKey(t *testing.T, bits int) crypto.Signer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func curveKey(t *testing.T, curve elliptic.Curve) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func edKey(t *testing.T) crypto.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

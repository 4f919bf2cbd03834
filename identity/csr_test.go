package identity

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
	"encoding/pem"
	"errors"
	"net"
	"net/url"
	"testing"

	"github.com/tulle-mesh/tulle/mesh"
)

func TestReadCSR(t *testing.T) {
	key := newKey(t)
	adminID := mesh.ID{TrustDomain: testDomain, Namespace: "default", Account: "admin"}
	from := func(key crypto.Signer, template x509.CertificateRequest) []byte {
		der, err := x509.CreateCertificateRequest(rand.Reader, &template, key)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	ext := func(oid asn1.ObjectIdentifier, value ...byte) pkix.Extension {
		return pkix.Extension{Id: oid, Value: value}
	}
	basicConstraints := asn1.ObjectIdentifier{2, 5, 29, 19}
	keyUsage := asn1.ObjectIdentifier{2, 5, 29, 15}
	isCA := []byte{0x30, 0x03, 0x01, 0x01, 0xff}
	legal := newCSR(t, key, webID)
	badSignature := bytes.Clone(legal)
	badSignature[len(badSignature)-1] ^= 1
	tests := []struct {
		name string
		der  []byte
		ok   bool
	}{
		{"legal", legal, true},
		{"legal, without a name", newCSR(t, key, mesh.ID{}), true},

		{"SAN of another account", newCSR(t, key, adminID), false},
		{"several SANs", from(key, x509.CertificateRequest{URIs: []*url.URL{webID.URL(), adminID.URL()}}), false},
		{"the right SAN twice", from(key, x509.CertificateRequest{URIs: []*url.URL{webID.URL(), webID.URL()}}), false},
		{"DNS name", from(key, x509.CertificateRequest{DNSNames: []string{"web.mesh"}}), false},
		{"DNS name as well", from(key, x509.CertificateRequest{URIs: []*url.URL{webID.URL()}, DNSNames: []string{"web.mesh"}}), false},
		{"IP address", from(key, x509.CertificateRequest{IPAddresses: []net.IP{{192, 0, 2, 1}}}), false},
		{"subject", from(key, x509.CertificateRequest{Subject: pkix.Name{CommonName: "admin"}}), false},
		{"subject with the right name", from(key, x509.CertificateRequest{Subject: pkix.Name{CommonName: "web"}}), false},
		{"CA:true", from(key, x509.CertificateRequest{ExtraExtensions: []pkix.Extension{ext(basicConstraints, isCA...)}}), false},
		{"key usage", from(key, x509.CertificateRequest{ExtraExtensions: []pkix.Extension{ext(keyUsage, 3, 2, 1, 6)}}), false},
		{"empty SAN", from(key, x509.CertificateRequest{ExtraExtensions: []pkix.Extension{ext(oidSubjectAltName, 0x30, 0)}}), false},
		{"extension twice", from(key, x509.CertificateRequest{ExtraExtensions: []pkix.Extension{
			ext(asn1.ObjectIdentifier{1, 2, 3}, 5, 0), ext(asn1.ObjectIdentifier{1, 2, 3}, 5, 0)}}), false},

		{"RSA-512", from(rsaKey(t, 512), x509.CertificateRequest{}), false},
		{"RSA-2048", from(rsaKey(t, 2048), x509.CertificateRequest{}), false},
		{"P-224", from(curveKey(t, elliptic.P224()), x509.CertificateRequest{}), false},
		{"P-384", from(curveKey(t, elliptic.P384()), x509.CertificateRequest{}), false},
		{"Ed25519", from(ed25519.NewKeyFromSeed(make([]byte, 32)), x509.CertificateRequest{}), false},
		{"SHA-1", from(key, x509.CertificateRequest{SignatureAlgorithm: x509.ECDSAWithSHA1}), false},
		{"bad signature", badSignature, false},
		{"another's key", swapKey(t, legal, key, newKey(t)), false},

		{"empty", nil, false},
		{"garbage", []byte("garbage"), false},
		{"truncated", legal[:len(legal)-1], false},
		{"trailing data", append(bytes.Clone(legal), 0), false},
		{"two", append(bytes.Clone(legal), legal...), false},
		{"PEM", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: legal}), false},
		{"huge", from(key, x509.CertificateRequest{ExtraExtensions: []pkix.Extension{
			{Id: asn1.ObjectIdentifier{1, 2, 3}, Value: make([]byte, 1<<20)}}}), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := readCSR(tt.der, webID)
			switch {
			case tt.ok && (err != nil || !got.Equal(key.Public())):
				t.Errorf("refused: %v", err)
			case !tt.ok && !errors.Is(err, ErrCSR):
				t.Errorf("error %v, want ErrCSR", err)
			case !tt.ok && got != nil:
				t.Error("refused, and yet a key was returned")
			}
		})
	}
}

// swapKey returns a CSR with another public key under the same signature.
func swapKey(t *testing.T, csr []byte, old, other *ecdsa.PrivateKey) []byte {
	t.Helper()
	from, err := x509.MarshalPKIXPublicKey(&old.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	to, err := x509.MarshalPKIXPublicKey(&other.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(csr, from) {
		t.Fatal("the CSR does not contain its key")
	}
	return bytes.Replace(csr, from, to, 1)
}

func FuzzReadCSR(f *testing.F) {
	key := newKey(f)
	f.Add(newCSR(f, key, webID))
	f.Add(newCSR(f, key, mesh.ID{}))
	f.Add([]byte{0x30, 0x80})
	f.Fuzz(func(t *testing.T, der []byte) {
		got, err := readCSR(der, webID)
		if err == nil && got == nil {
			t.Error("accepted without a key")
		}
		if err != nil && !errors.Is(err, ErrCSR) {
			t.Errorf("%v does not wrap ErrCSR", err)
		}
	})
}

func rsaKey(t *testing.T, bits int) crypto.Signer {
	t.Helper()
	if bits < 1024 {
		t.Setenv("GODEBUG", "rsa1024min=0")
	}
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

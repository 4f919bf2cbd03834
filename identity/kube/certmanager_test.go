package kube

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/tulle-mesh/tulle/identity"
	"github.com/tulle-mesh/tulle/mesh/cluster"
)

// written is the Secret of a Certificate as cert-manager 1.18 writes it:
// https://cert-manager.io/docs/usage/certificate/#target-secret.
func written(pair identity.KeyPair, version string) *corev1.Secret {
	s := secretOf(pair, version)
	s.Labels = map[string]string{"controller.cert-manager.io/fao": "true"}
	s.Annotations = map[string]string{
		"cert-manager.io/alt-names": "", "cert-manager.io/certificate-name": "tulle-ca", "cert-manager.io/common-name": "tulle", "cert-manager.io/ip-sans": "",
		"cert-manager.io/issuer-group": "", "cert-manager.io/issuer-kind": "Issuer", "cert-manager.io/issuer-name": "ca", "cert-manager.io/uri-sans": "",
	}
	return s
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// authority is a Certificate with isCA: true, of a key that may have had another one
// before; by nil: of an Issuer of type selfSigned.
func authority(t *testing.T, name string, public, byKey any, by *x509.Certificate) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(90 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
	}
	if by == nil {
		by = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by, public, byKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// sec1 is privateKey.encoding: PKCS1, which is the default, of an ECDSA key.
func sec1(t *testing.T, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return encode("EC PRIVATE KEY", der)
}

func pkcs8(t *testing.T, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return encode("PRIVATE KEY", der)
}

// What cert-manager writes works in each of its forms; when it renews, what was
// signed before stays good where the trust of others has not changed: below the same
// root, and with the same key.
func TestCertManager(t *testing.T) {
	rootKey, ownKey, firstKey, secondKey := newKey(t), newKey(t), newKey(t), newKey(t)
	root := authority(t, "root", &rootKey.PublicKey, rootKey, nil)
	below := func(key *ecdsa.PrivateKey, encoded []byte) identity.KeyPair {
		cert := authority(t, "tulle", &key.PublicKey, rootKey, root)
		return identity.KeyPair{Certificates: encode("CERTIFICATE", cert.Raw), Key: encoded, Roots: encode("CERTIFICATE", root.Raw)}
	}
	selfSigned := func(key *ecdsa.PrivateKey) identity.KeyPair { // ca.crt is tls.crt
		cert := encode("CERTIFICATE", authority(t, "tulle", &key.PublicKey, key, nil).Raw)
		return identity.KeyPair{Certificates: cert, Key: sec1(t, key), Roots: cert}
	}
	for _, c := range []struct {
		name          string
		first, second identity.KeyPair
		stays         bool // what the first signed is trusted with the second
	}{
		{"an Issuer's, a new key each time", below(firstKey, sec1(t, firstKey)), below(secondKey, sec1(t, secondKey)), true},
		{"an Issuer's, the same key, PKCS #8", below(firstKey, pkcs8(t, firstKey)), below(firstKey, pkcs8(t, firstKey)), true},
		{"selfSigned, rotationPolicy: Never", selfSigned(ownKey), selfSigned(ownKey), true},
		{"selfSigned, rotationPolicy: Always", selfSigned(ownKey), selfSigned(secondKey), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := &Keeper{Client: fake.NewClientset(written(c.first, "1")), Namespace: cluster.Namespace, Name: cluster.CASecret, TrustDomain: domain, Log: discard}
			a, err := k.Open(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			old := certified(t, a)
			if err := trusted(a, old); err != nil {
				t.Error(err)
			}
			k.use(written(c.second, "2"))
			if err := trusted(a, certified(t, a)); err != nil {
				t.Errorf("after the renewal: %v", err)
			}
			if err := trusted(a, old); (err == nil) != c.stays {
				t.Errorf("what was signed before the renewal: %v, want it trusted: %v", err, c.stays)
			}
		})
	}
}

// The default of cert-manager is RSA, which says what to write instead.
func TestCertManagerRSA(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	cert := encode("CERTIFICATE", authority(t, "tulle", &key.PublicKey, key, nil).Raw)
	for name, encoded := range map[string][]byte{"PKCS #1": encode("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key)), "PKCS #8": pkcs8(t, key)} {
		secret := written(identity.KeyPair{Certificates: cert, Key: encoded, Roots: cert}, "1")
		k := &Keeper{Client: fake.NewClientset(secret), Namespace: cluster.Namespace, Name: cluster.CASecret, TrustDomain: domain, Log: discard}
		if _, err := k.Open(t.Context()); err == nil || !strings.Contains(err.Error(), "privateKey.algorithm: ECDSA, size: 256") {
			t.Errorf("%s: %v, want what to type", name, err)
		}
	}
}

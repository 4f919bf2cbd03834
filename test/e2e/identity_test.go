package e2e

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/tulle-mesh/tulle/mesh"
)

// TestWrongCertificates: the inbound proxy answers nobody whose certificate is
// not just what the authority would have signed. Each is tried from the host
// on the workload's own port, by the mesh's ALPN.
func TestWrongCertificates(t *testing.T) {
	host := newHost(t)
	host.serve(t, service{name: "web", port: 8080, argv: peerCommand("web", "--name", "the answer", ":8080")})
	addr := net.JoinHostPort(address(host.replicas("web")[0].Address4), "8080")
	ours, stranger := readCA(t), newCA(t)
	const me = "spiffe://tulle.local/ns/default/sa/caller"

	if err := askMesh(addr, ours.leaf(t, me, nil)); err != nil {
		t.Fatalf("with a right certificate: %v", err)
	}
	day := 24 * time.Hour
	for _, c := range []struct {
		name string
		cert *tls.Certificate
	}{
		{"none", nil},
		{"another-root", stranger.leaf(t, me, nil)},
		{"self-signed", selfSigned(t, me)},
		{"another-trust-domain", ours.leaf(t, "spiffe://elsewhere.local/ns/default/sa/caller", nil)},
		{"expired", ours.leaf(t, me, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = c.NotBefore.Add(-3*day), time.Now().Add(-day) })},
		{"not-yet-valid", ours.leaf(t, me, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = time.Now().Add(day), time.Now().Add(2*day) })},
		{"no-name", ours.leaf(t, "", nil)},
		{"common-name-only", ours.leaf(t, "", func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: me} })},
		{"dns-name-only", ours.leaf(t, "", func(c *x509.Certificate) { c.DNSNames = []string{"caller.mesh"} })},
		{"dns-name-too", ours.leaf(t, "", func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{names(t, rawName{6, me}, rawName{2, "caller.mesh"})}
		})},
		{"two-names", ours.leaf(t, "", func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{names(t, rawName{6, me}, rawName{6, strings.Replace(me, "caller", "root", 1)})}
		})},
		{"authority", ours.leaf(t, me, func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, c.KeyUsage|x509.KeyUsageCertSign })},
		{"server-only", ours.leaf(t, me, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })},
		{"trailing-slash", ours.leaf(t, me+"/", nil)},
		{"upper-case", ours.leaf(t, "spiffe://tulle.local/ns/default/sa/Caller", nil)},
		{"upper-case-scheme", ours.leaf(t, "SPIFFE://tulle.local/ns/default/sa/caller", nil)},
		{"percent", ours.leaf(t, "spiffe://tulle.local/ns/default/sa%2fcaller", nil)},
		{"wildcard", ours.leaf(t, "spiffe://tulle.local/ns/default/sa/*", nil)},
		{"nul", ours.leaf(t, me+"\x00", nil)},
		{"query", ours.leaf(t, me+"?admin", nil)},
		{"port", ours.leaf(t, "spiffe://tulle.local:443/ns/default/sa/caller", nil)},
		{"huge", ours.leaf(t, me, func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Value: make([]byte, 60000)})
		})},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := askMesh(addr, c.cert); err == nil {
				t.Error("it was let in")
			}
		})
	}
	if err := askMesh(addr, ours.leaf(t, me, nil)); err != nil {
		t.Errorf("with a right certificate, after all the wrong ones: %v", err)
	}
}

// askMesh makes one HTTP request as an outbound proxy would, and returns nil if
// the application answered it.
func askMesh(addr string, cert *tls.Certificate) error {
	conf := &tls.Config{
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{mesh.ALPNHTTP1},
		InsecureSkipVerify: true, // who the server is, is not the question here
	}
	if cert != nil {
		conf.Certificates = []tls.Certificate{*cert}
	}
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", addr, conf)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	const request = "GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n"
	frame := []byte{1, 0, 0, byte(len(request)), 0, 0, 0, 1} // DATA of stream 1: see proxy/mux
	if _, err := conn.Write(append(frame, request...)); err != nil {
		return err
	}
	answer := bufio.NewReader(&framed{Reader: bufio.NewReader(conn)})
	if _, err := answer.ReadByte(); err != nil { // the flags that proxies put before an answer
		return err
	}
	resp, err := http.ReadResponse(answer, nil)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(resp.Body)
	if err == nil && !strings.Contains(string(body), "the answer") {
		err = fmt.Errorf("%s: %q", resp.Status, body)
	}
	return err
}

// framed reads the DATA of the only stream of a connection between proxies.
type framed struct {
	*bufio.Reader
	left int // of the present frame
}

func (f *framed) Read(p []byte) (int, error) {
	for f.left == 0 {
		var header [8]byte
		if _, err := io.ReadFull(f.Reader, header[:]); err != nil {
			return 0, err
		}
		n := int(header[1])<<16 | int(header[2])<<8 | int(header[3])
		switch header[0] {
		case 1:
			f.left = n
		case 2:
			return 0, io.EOF
		default:
			return 0, fmt.Errorf("frame %d of %d bytes", header[0], n)
		}
	}
	n, err := f.Reader.Read(p[:min(len(p), f.left)])
	f.left -= n
	return n, err
}

// ca signs whatever it is asked to.
type ca struct {
	cert *x509.Certificate
	key  any
}

// readCA reads the mesh's own authority.
func readCA(t *testing.T) *ca {
	t.Helper()
	block := func(file string) []byte {
		text, err := os.ReadFile(stateDir + "/" + file)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := pem.Decode(text)
		if b == nil {
			t.Fatalf("%s: no PEM", file)
		}
		return b.Bytes
	}
	cert, err := x509.ParseCertificate(block("ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.ParsePKCS8PrivateKey(block("ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	return &ca{cert, key}
}

// newCA is an authority with the right name and another key.
func newCA(t *testing.T) *ca {
	t.Helper()
	ours := readCA(t)
	key := newKey(t)
	template := *ours.cert
	template.PublicKey = key.Public()
	template.SignatureAlgorithm, template.RawSubject, template.AuthorityKeyId, template.SubjectKeyId = 0, nil, nil, nil
	return &ca{create(t, &template, &template, key, key), key}
}

// leaf signs a certificate for an identity; change may spoil it.
func (c *ca) leaf(t *testing.T, id string, change func(*x509.Certificate)) *tls.Certificate {
	t.Helper()
	key := newKey(t)
	template := leafTemplate(t, id)
	if change != nil {
		change(template)
	}
	cert := create(t, template, c.cert, key, c.key)
	return &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

func selfSigned(t *testing.T, id string) *tls.Certificate {
	t.Helper()
	key := newKey(t)
	template := leafTemplate(t, id)
	return &tls.Certificate{Certificate: [][]byte{create(t, template, template, key, key).Raw}, PrivateKey: key}
}

func leafTemplate(t *testing.T, id string) *x509.Certificate {
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(time.Now().UnixNano()),
		NotBefore:             time.Now().Add(-time.Minute),
		NotAfter:              time.Now().Add(time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	if id != "" {
		template.ExtraExtensions = []pkix.Extension{names(t, rawName{6, id})}
	}
	return template
}

// rawName is a GeneralName (RFC 5280 section 4.2.1.6): 2 is a DNS name, 6 a URI.
// Written by hand, since x509 and net/url would correct the wrong ones.
type rawName struct {
	tag  int
	text string
}

func names(t *testing.T, all ...rawName) pkix.Extension {
	t.Helper()
	var raw []asn1.RawValue
	for _, n := range all {
		raw = append(raw, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: n.tag, Bytes: []byte(n.text)})
	}
	der, err := asn1.Marshal(raw)
	if err != nil {
		t.Fatal(err)
	}
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: der}
}

// create signs and returns what it can of the certificate: some are so wrong
// that x509 will not read them back.
func create(t *testing.T, template, parent *x509.Certificate, key *ecdsa.PrivateKey, signer any) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	if cert, err := x509.ParseCertificate(der); err == nil {
		return cert
	}
	return &x509.Certificate{Raw: der}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

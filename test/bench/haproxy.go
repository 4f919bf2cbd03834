package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// haproxyConfig is for both sides of a pair; what follows `defaults` differs.
// The cipher is the one that Go picks, so that all peers pay the same for it.
const haproxyConfig = `
global
  nbthread 2
  maxconn 8000
  ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256
  ssl-default-server-ciphersuites TLS_AES_128_GCM_SHA256
  tune.pool-low-fd-ratio 50
  tune.pool-high-fd-ratio 60
  uid %[3]d
defaults
  mode http
  timeout connect 5s
  timeout client 300s
  timeout server 300s
  timeout http-keep-alive 300s
  http-reuse always
  option http-keep-alive
`

const haproxyOutbound = `
frontend app
  bind 127.0.0.1:18080
  default_backend mesh
backend mesh
  server peer %[1]s ssl verify required ca-file %[2]s/ca.pem crt %[2]s/client.pem verifyhost server ssl-min-ver TLSv1.3 pool-purge-delay 300s
`

const haproxyInbound = `
frontend mesh
  bind :18443 ssl crt %[2]s/server.pem ca-file %[2]s/ca.pem verify required ssl-min-ver TLSv1.3
  default_backend app
backend app
  server app 127.0.0.1:8080 pool-purge-delay 300s
`

// haproxyRedirect brings what is for the application to HAProxy, as cni/redirect
// does for Tulle: on the way out of the client, and on the way into the server.
const haproxyRedirect = `
table ip bench {
	chain out {
		type nat hook output priority -100;
		meta skuid %[1]d accept
		tcp dport 8080 redirect to :18080
	}
	chain in {
		type nat hook prerouting priority -100;
		tcp dport 8080 redirect to :18443
	}
}
`

// haproxyUID is the user of HAProxy's processes, by which the redirect knows them.
const haproxyUID = 2103

func startHAProxy(_ context.Context, l *lab) (*rig, error) {
	r := &rig{client: openSite.clientNS, http: "127.0.0.1:18080"}
	return r, l.haproxy(r, "haproxy", openSite, hostPort(openSite.serverAddr, 18443))
}

func startHidden(_ context.Context, l *lab) (*rig, error) {
	server := hostPort(hiddenSite.serverAddr, httpPort)
	r := &rig{client: hiddenSite.clientNS, http: server}
	for _, ns := range []string{hiddenSite.clientNS, hiddenSite.serverNS} {
		if err := command("ip", "netns", "exec", ns, "nft", fmt.Sprintf(haproxyRedirect, haproxyUID)); err != nil {
			return nil, err
		}
	}
	return r, l.haproxy(r, "haproxy-redirected", hiddenSite, server)
}

// haproxy starts a pair; the client's side dials peer.
func (l *lab) haproxy(r *rig, name string, s site, peer string) error {
	if err := writeCertificates(l.dir); err != nil {
		return err
	}
	for _, side := range []struct{ name, ns, config string }{
		{name + "-out", s.clientNS, haproxyOutbound},
		{name + "-in", s.serverNS, haproxyInbound},
	} {
		file := filepath.Join(l.dir, side.name+".cfg")
		text := fmt.Sprintf(haproxyConfig+side.config, peer, l.dir, haproxyUID)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			return err
		}
		cmd, err := l.start(side.name, "ip", "netns", "exec", side.ns, "haproxy", "-db", "-f", file) // ip execs: the pid is haproxy's
		if err != nil {
			return err
		}
		r.proxies = append(r.proxies, cmd.Process.Pid)
	}
	return nil
}

// writeCertificates makes ca.pem, client.pem and server.pem: ECDSA P-256, as
// the mesh's own.
func writeCertificates(dir string) error {
	root, rootKey, err := certificate("bench", nil, nil)
	if err != nil {
		return err
	}
	if err := writePEM(filepath.Join(dir, "ca.pem"), root, nil); err != nil {
		return err
	}
	for _, name := range []string{"client", "server"} {
		leaf, key, err := certificate(name, root, rootKey)
		if err != nil {
			return err
		}
		if err := writePEM(filepath.Join(dir, name+".pem"), leaf, key); err != nil {
			return err
		}
	}
	return nil
}

// certificate is self-signed where there is no parent.
func certificate(name string, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(24 * time.Hour), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	if parent == nil {
		template.IsCA, template.KeyUsage, template.ExtKeyUsage = true, x509.KeyUsageCertSign, nil
		parent, parentKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return cert, key, err
}

func writePEM(name string, cert *x509.Certificate, key *ecdsa.PrivateKey) error {
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
	if key != nil {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return err
		}
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})...)
	}
	return os.WriteFile(name, text, 0o600)
}

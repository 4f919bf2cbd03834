package dashboard

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/mesh"
)

// certify returns a certificate that signs itself.
func certify(t *testing.T, id mesh.ID, notAfter time.Time) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(0xBEEF), Subject: pkix.Name{CommonName: "test root"}, URIs: []*url.URL{id.URL()},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: notAfter, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// fromTLS is a PeerID as the identity package has one, without its checks.
func fromTLS(ctx context.Context) (mesh.ID, error) {
	p, _ := peer.FromContext(ctx)
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return mesh.ID{}, errors.New("no certificate")
	}
	return mesh.ParseID(info.State.PeerCertificates[0].URIs[0].String())
}

func TestAttachOverGRPC(t *testing.T) {
	c := newTestCollector(t, func(config *Config) { config.PeerID = fromTLS })
	expires := time.Now().Add(time.Hour).Truncate(time.Second)
	held := certify(t, testID("web"), expires)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{held}, ClientAuth: tls.RequireAnyClientCert})))
	tullev1.RegisterTelemetryServer(server, c)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	defer func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	connection, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{held}, InsecureSkipVerify: true, // the server's name is not what is tested
	})))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = connection.Close() }()

	stream, err := tullev1.NewTelemetryClient(connection).Attach(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	renewed := expires.Add(time.Hour)
	for _, m := range []*tullev1.ProxyMessage{
		{Message: &tullev1.ProxyMessage_Hello{Hello: &tullev1.Hello{Workload: "web-1", StartUnixMs: 1}}},
		reportMessage(&tullev1.Report{Proxy: &tullev1.ProxyStats{CertNotAfterUnix: expires.Unix()}}),
		reportMessage(&tullev1.Report{
			Edges: []*tullev1.Edge{outbound("db", "db-1").add(time.Millisecond).message()},
			Proxy: &tullev1.ProxyStats{CertNotAfterUnix: renewed.Unix(), RssBytes: 9 << 20},
		}),
	} {
		if err := stream.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	// A proxy that ends waits for the end of the stream: then its last report has been taken.
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err == nil || !strings.Contains(err.Error(), "EOF") {
		t.Fatalf("the stream ended with %v", err)
	}
	if e := theEdge(t, c, 0); e.TotalRequests != 1 || e.SourceIdentity != testID("web").String() {
		t.Errorf("the last report: %+v", e)
	}

	h := newTestHandler(t, c, func(config *HandlerConfig) {
		config.Roots = func() []*x509.Certificate { return []*x509.Certificate{held.Leaf} }
	})
	var answer Identities
	if err := json.Unmarshal(get(h, "/api/v1/identities?name=web-1").Body.Bytes(), &answer); err != nil || len(answer.Items) != 1 {
		t.Fatalf("identities: %v, %+v", err, answer)
	}
	holder, root := answer.Items[0].Holders[0], answer.Roots[0]
	if holder.Renewals != 1 || holder.Expires != stamp(renewed) || holder.Issuer != "CN=test root" || holder.Serial != "" || holder.Address != "127.0.0.1" {
		t.Errorf("holder: %+v", holder)
	}
	if root.Subject != "CN=test root" || len(root.SHA256) != 64 || root.Expires != stamp(expires) {
		t.Errorf("root: %+v", root)
	}
	after := factsOf(held.Leaf, certificate{renewals: 1, notAfter: expires.Add(-time.Hour)})
	if after.serial != "beef" || after.renewals != 2 {
		t.Errorf("after another attach: %+v", after)
	}
	for _, name := range []string{"web", testID("web").String()} { // the service, and the identity itself
		if err := json.Unmarshal(get(h, "/api/v1/identities?name="+name).Body.Bytes(), &answer); err != nil || len(answer.Items) != 1 {
			t.Errorf("identities of %s: %v, %+v", name, err, answer)
		}
	}
	if w := get(h, "/api/v1/identities?name=nobody"); !strings.Contains(w.Body.String(), `"items":[]`) {
		t.Errorf("nobody: %s", w.Body)
	}
}

package kube

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/identity"
	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/mesh/cluster"
)

const domain = "cluster.local"

var discard = slog.New(slog.DiscardHandler)

// reviewing is a client whose API server knows some tokens.
func reviewing(known map[string]authenticationv1.TokenReviewStatus) *fake.Clientset {
	client := fake.NewClientset()
	client.PrependReactor("create", "tokenreviews", func(action clienttesting.Action) (bool, runtime.Object, error) {
		review := action.(clienttesting.CreateAction).GetObject().(*authenticationv1.TokenReview)
		if !slices.Equal(review.Spec.Audiences, []string{cluster.TokenAudience}) {
			return true, nil, errors.New("asked for another audience")
		}
		if review.Spec.Token == "outage" {
			return true, nil, errors.New("etcd is away")
		}
		review.Status = known[review.Spec.Token]
		return true, review, nil
	})
	return client
}

// of is what the API server says of the token of a pod.
func of(ns, account, pod string) authenticationv1.TokenReviewStatus {
	return authenticationv1.TokenReviewStatus{
		Authenticated: true, Audiences: []string{cluster.TokenAudience},
		User: authenticationv1.UserInfo{Username: "system:serviceaccount:" + ns + ":" + account, Extra: map[string]authenticationv1.ExtraValue{
			podNameKey: {pod}, podUIDKey: {"uid-of-" + pod},
		}},
	}
}

func change(s authenticationv1.TokenReviewStatus, f func(*authenticationv1.TokenReviewStatus)) authenticationv1.TokenReviewStatus {
	f(&s)
	return s
}

func TestProve(t *testing.T) {
	good := of("shop", "web", "web-1")
	reviewer := NewReviewer(ReviewerConfig{TrustDomain: domain, Client: reviewing(map[string]authenticationv1.TokenReviewStatus{
		"good":     good,
		"dotted":   of("shop", "web.blue", "web-1"),
		"expired":  {Error: "[invalid bearer token, service account token has expired]"},
		"audience": change(good, func(s *authenticationv1.TokenReviewStatus) { s.Audiences = []string{"https://kubernetes.default.svc"} }),
		"silent":   change(good, func(s *authenticationv1.TokenReviewStatus) { s.Audiences = nil }), // an authenticator that knows no audiences
		"both":     change(good, func(s *authenticationv1.TokenReviewStatus) { s.Error = "odd" }),
		"user":     change(good, func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "admin" }),
		"node":     change(good, func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "system:node:shop:web" }),
		"forged":   change(good, func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "system:serviceaccount:shop/../x:web" }),
		"three":    change(good, func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "system:serviceaccount:shop:web:x" }),
		"unbound":  change(good, func(s *authenticationv1.TokenReviewStatus) { s.User.Extra = nil }),
		"uidless": change(good, func(s *authenticationv1.TokenReviewStatus) {
			s.User.Extra = map[string]authenticationv1.ExtraValue{podNameKey: {"web-1"}}
		}),
		"ambiguous": change(good, func(s *authenticationv1.TokenReviewStatus) {
			s.User.Extra = map[string]authenticationv1.ExtraValue{podNameKey: {"web-1", "web-2"}, podUIDKey: {"u"}}
		}),
	})})
	for _, tt := range []struct{ token, want, err string }{
		{"good", "spiffe://cluster.local/ns/shop/sa/web", ""},
		{"dotted", "spiffe://cluster.local/ns/shop/sa/web.blue", ""},
		{"unknown", "", "not authentic"},
		{"expired", "", "expired"},
		{"audience", "", "it is for"},
		{"silent", "", "it is for"},
		{"both", "", "odd"},
		{"user", "", "no service account"},
		{"node", "", "no service account"},
		{"forged", "", "namespace"},
		{"three", "", "account"},
		{"unbound", "", "bound to no pod"},
		{"uidless", "", "bound to no pod"},
		{"ambiguous", "", "bound to no pod"},
		{strings.Repeat("x", maxToken+1), "", "bytes"},
	} {
		id, err := reviewer.Prove(t.Context(), tt.token)
		switch {
		case tt.err == "" && (err != nil || id.String() != tt.want):
			t.Errorf("%s: %s, %v", tt.token, id, err)
		case tt.err != "" && (!errors.Is(err, identity.ErrToken) || !strings.Contains(err.Error(), tt.err) || !id.IsZero()):
			t.Errorf("%.10s: %s, %v; want %s", tt.token, id, err, tt.err)
		}
	}
	// Not being able to ask says nothing about the token.
	if _, err := reviewer.Prove(t.Context(), "outage"); err == nil || errors.Is(err, identity.ErrToken) {
		t.Errorf("outage: %v", err)
	}
}

// A token of another pod, and names that a CSR makes up, over the wire.
func TestCertify(t *testing.T) {
	client := reviewing(map[string]authenticationv1.TokenReviewStatus{
		"mine": of("shop", "web", "web-1"), "stolen": of("shop", "db", "db-0"), "new": of("shop", "new", "new-1"),
	})
	keeper := &Keeper{Client: client, Namespace: cluster.Namespace, Name: cluster.CASecret, TrustDomain: domain, Log: discard}
	authority, err := keeper.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	here, elsewhere := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("10.0.0.9")
	reviewer := NewReviewer(ReviewerConfig{Client: client, TrustDomain: domain, PodAddrs: func(_, name, uid string) []netip.Addr {
		if uid != "uid-of-"+name {
			t.Errorf("uid %s of %s", uid, name)
		}
		return map[string][]netip.Addr{"web-1": {elsewhere, here}, "db-0": {elsewhere}}[name]
	}})
	server := grpc.NewServer(identity.ServerOptions(authority, discard)...)
	tullev1.RegisterIdentityServer(server, identity.NewServer(identity.ServerConfig{Authority: authority, Prove: reviewer.Prove, TokenOnly: true, Log: discard}))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(l) })
	defer serving.Wait()
	defer server.Stop()

	var shown *tls.Certificate
	call := func(token string, names ...string) (*tullev1.CertifyResponse, *ecdsa.PrivateKey, error) {
		t.Helper()
		conf := &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true} // what is under test is the other side
		if shown != nil {
			conf.Certificates = []tls.Certificate{*shown}
		}
		conn, err := grpc.NewClient("passthrough:///"+l.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(conf)))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.CertificateRequest{}
		for _, name := range names {
			u, err := url.Parse(name)
			if err != nil {
				t.Fatal(err)
			}
			template.URIs = append(template.URIs, u)
		}
		csr, err := x509.CreateCertificateRequest(rand.Reader, template, key)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := tullev1.NewIdentityClient(conn).Certify(t.Context(), &tullev1.CertifyRequest{Csr: csr, Token: token})
		return answer, key, err
	}
	web := "spiffe://cluster.local/ns/shop/sa/web"
	for _, tt := range []struct {
		name, token string
		names       []string
		code        codes.Code
	}{
		{"its own", "mine", nil, codes.OK},
		{"its own, by name", "mine", []string{web}, codes.OK},
		{"another name", "mine", []string{"spiffe://cluster.local/ns/shop/sa/db"}, codes.InvalidArgument},
		{"one more name", "mine", []string{web, "spiffe://cluster.local/ns/shop/sa/db"}, codes.InvalidArgument},
		{"another pod's", "stolen", nil, codes.Unauthenticated},
		{"of a pod without an address yet", "new", nil, codes.OK},
		{"none", "", nil, codes.Unauthenticated},
	} {
		answer, key, err := call(tt.token, tt.names...)
		if status.Code(err) != tt.code {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.code)
		}
		if tt.name == "its own" && err == nil {
			leaf, err := x509.ParseCertificate(answer.GetChain()[0])
			if err != nil || len(leaf.URIs) != 1 || leaf.URIs[0].String() != web {
				t.Errorf("%v, %v", leaf.URIs, err)
			}
			shown = &tls.Certificate{Certificate: answer.GetChain(), PrivateKey: key}
		}
	}
	// A certificate alone renews nothing: the token says whether the pod still is.
	if _, _, err := call(""); status.Code(err) != codes.Unauthenticated {
		t.Errorf("by certificate alone: %v", err)
	}
}

// Of several replicas that start at once, all use one authority.
func TestKeeperRace(t *testing.T) {
	client := fake.NewClientset()
	var group sync.WaitGroup
	roots := make([][]byte, 8)
	for i := range roots {
		group.Go(func() {
			k := &Keeper{Client: client, Namespace: "tulle-system", Name: "tulle-ca", TrustDomain: domain, Log: discard}
			a, err := k.Open(context.Background())
			if err != nil {
				t.Error(err)
				return
			}
			roots[i] = a.Roots().PEM()
		})
	}
	group.Wait()
	for _, r := range roots {
		if !bytes.Equal(r, roots[0]) || len(r) == 0 {
			t.Fatalf("%s\n%s", r, roots[0])
		}
	}
	secret, err := client.CoreV1().Secrets("tulle-system").Get(t.Context(), "tulle-ca", metav1.GetOptions{})
	if err != nil || secret.Type != corev1.SecretTypeTLS {
		t.Errorf("%+v, %v", secret, err)
	}
}

// brought makes an authority as cert-manager would: a root, and an intermediate
// that signs, with keys in SEC 1.
func brought(t *testing.T, name string) identity.KeyPair {
	t.Helper()
	rootKey, root := issue(t, name+" root", nil, nil)
	key, cert := issue(t, name, rootKey, root)
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return identity.KeyPair{
		Certificates: encode("CERTIFICATE", cert.Raw), Key: encode("EC PRIVATE KEY", der), Roots: encode("CERTIFICATE", root.Raw),
	}
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func issue(t *testing.T, name string, byKey *ecdsa.PrivateKey, by *x509.Certificate) (*ecdsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	if by == nil {
		by, byKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by, &key.PublicKey, byKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return key, cert
}

func secretOf(pair identity.KeyPair, version string) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: cluster.Namespace, Name: cluster.CASecret, ResourceVersion: version}, Type: corev1.SecretTypeTLS,
		Data: map[string][]byte{corev1.TLSCertKey: pair.Certificates, corev1.TLSPrivateKeyKey: pair.Key, rootsKey: pair.Roots},
	}
}

// certified returns a leaf's chain, signed by the authority of this moment.
func certified(t *testing.T, a *identity.Authority) []*x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	issued, err := a.Sign(csr, mesh.ID{TrustDomain: domain, Namespace: "shop", Account: "web"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	var chain []*x509.Certificate
	for _, der := range issued.Chain {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		chain = append(chain, cert)
	}
	return chain
}

func trusted(a *identity.Authority, chain []*x509.Certificate) error {
	_, err := mesh.VerifyPeer(chain, a.Roots().Pool, domain, x509.ExtKeyUsageServerAuth, time.Now())
	return err
}

// A Secret that is brought works, intermediate and all, and is followed live:
// with the old root kept in ca.crt, what it signed stays good.
func TestKeeperFollows(t *testing.T) {
	first, second := brought(t, "first"), brought(t, "second")
	client := fake.NewClientset(secretOf(first, "1"))
	k := &Keeper{Client: client, Namespace: cluster.Namespace, Name: cluster.CASecret, TrustDomain: domain, Log: discard}
	a, err := k.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	old := certified(t, a)
	if len(old) != 2 {
		t.Errorf("a chain of %d, want leaf and intermediate", len(old))
	}
	if err := trusted(a, old); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := k.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	defer running.Wait()
	defer cancel()

	update := func(pair identity.KeyPair, version string) {
		t.Helper()
		if _, err := client.CoreV1().Secrets(cluster.Namespace).Update(ctx, secretOf(pair, version), metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	await := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("never: %s", what)
			}
		}
	}
	both := second
	both.Roots = slices.Concat(second.Roots, first.Roots)
	_, changed := a.Watch()
	// The fake API server may lose an update between the informer's list and its watch.
	await("two roots", func() bool { update(both, "2"); return len(a.Roots().Certificates) == 2 })
	select {
	case <-changed:
	case <-time.After(time.Minute):
		t.Error("watchers were not told")
	}
	fresh := certified(t, a)
	if err := errors.Join(trusted(a, old), trusted(a, fresh)); err != nil {
		t.Error(err)
	}
	broken := second
	broken.Key = first.Key
	update(broken, "3")
	update(second, "4")
	await("the new root alone", func() bool { return len(a.Roots().Certificates) == 1 })
	if err := trusted(a, fresh); err != nil {
		t.Error(err)
	}
	if err := trusted(a, old); err == nil {
		t.Error("what a removed root signed is trusted")
	}
}

func TestBadSecrets(t *testing.T) {
	good, other := brought(t, "one"), brought(t, "two")
	for name, tt := range map[string]struct {
		change func(*identity.KeyPair)
		want   string
	}{
		"no key":        {func(p *identity.KeyPair) { p.Key = nil }, "tls.key"},
		"rubbish":       {func(p *identity.KeyPair) { p.Certificates = []byte("x") }, "tls.crt"},
		"empty":         {func(p *identity.KeyPair) { p.Certificates = nil }, "no certificate"},
		"another's key": {func(p *identity.KeyPair) { p.Key = other.Key }, "does not belong"},
		"no root":       {func(p *identity.KeyPair) { p.Roots = nil }, "leads to no root"},
		"another root":  {func(p *identity.KeyPair) { p.Roots = other.Roots }, "leads to no root"},
	} {
		pair := good
		tt.change(&pair)
		k := &Keeper{Client: fake.NewClientset(secretOf(pair, "1")), Namespace: cluster.Namespace, Name: cluster.CASecret, TrustDomain: domain, Log: discard}
		_, err := k.Open(t.Context())
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "tulle-system/tulle-ca") {
			t.Errorf("%s: %v, want %s", name, err, tt.want)
		}
	}
}

package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"flag"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"runtime"
	"runtime/pprof"
	"sync"
	"testing"
	"time"

	"github.com/tulle-mesh/tulle/mesh"
)

const testDomain = "tulle.local"

var discard = slog.New(slog.DiscardHandler)

var (
	webID   = mesh.ID{TrustDomain: testDomain, Namespace: "default", Account: "web"}
	otherID = mesh.ID{TrustDomain: testDomain, Namespace: "default", Account: "other"}
)

// TestMain fails if a goroutine outlives the tests.
func TestMain(m *testing.M) {
	before := runtime.NumGoroutine()
	code := m.Run()
	if flag.Lookup("test.fuzz").Value.String() != "" {
		os.Exit(code) // the fuzzing engine keeps goroutines of its own
	}
	for deadline := time.Now().Add(30 * time.Second); runtime.NumGoroutine() > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			fmt.Fprintln(os.Stderr, "goroutines leaked:")
			pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
			code = max(code, 1)
			break
		}
	}
	os.Exit(code)
}

// testClock is a clock that tests move.
type testClock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *testClock {
	return &testClock{now: time.Now().Truncate(time.Second)}
}

func (c *testClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *testClock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func newAuthority(t testing.TB, clock *testClock) *Authority {
	t.Helper()
	a, err := Open(Config{TrustDomain: testDomain, Now: clock.Now, Log: discard})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// newCSR returns a CSR for id, or without a name for the zero ID.
func newCSR(t testing.TB, key crypto.Signer, id mesh.ID) []byte {
	t.Helper()
	template := &x509.CertificateRequest{}
	if !id.IsZero() {
		template.URIs = []*url.URL{id.URL()}
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// verify returns what both sides of a connection think of an issued chain.
func verify(issued [][]byte, roots *Roots, now time.Time) (mesh.ID, error) {
	var chain []*x509.Certificate
	for _, der := range issued {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return mesh.ID{}, err
		}
		chain = append(chain, cert)
	}
	return mesh.VerifyPeer(chain, roots.Pool, testDomain, x509.ExtKeyUsageServerAuth, now)
}

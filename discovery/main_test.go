package discovery

import (
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"runtime/pprof"
	"testing"
	"time"
)

var discard = slog.New(slog.DiscardHandler)

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

func newState(t testing.TB) *State {
	t.Helper()
	s, err := NewState(testConfig())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func testConfig() Config {
	replicas4, vips4 := Halves(netip.MustParsePrefix("10.84.0.0/16"))
	replicas6, vips6 := Halves(netip.MustParsePrefix("fd84:7475:6c6c:e000::/64"))
	return Config{
		TrustDomain: "tulle.local",
		Replicas4:   replicas4, Replicas6: replicas6,
		VIPs4: vips4, VIPs6: vips6,
		Reserved: []netip.Addr{netip.MustParseAddr("10.84.0.1"), netip.MustParseAddr("fd84:7475:6c6c:e000::1")},
	}
}

func join(t testing.TB, s *State, req JoinRequest) *Lease {
	t.Helper()
	l, err := s.Join(req)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func setCatalog(t testing.TB, s *State, text string) {
	t.Helper()
	catalog, err := ParseCatalog("services.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SetCatalog(catalog); err != nil {
		t.Fatal(err)
	}
}

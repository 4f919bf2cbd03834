package discovery

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
)

func newPool(t *testing.T, prefix string, reserved ...string) *Pool {
	t.Helper()
	var addrs []netip.Addr
	for _, r := range reserved {
		addrs = append(addrs, netip.MustParseAddr(r))
	}
	p, err := NewPool(netip.MustParsePrefix(prefix), "--network4", addrs...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func take(t *testing.T, p *Pool, owner, want string) {
	t.Helper()
	got, err := p.Take(owner)
	if err != nil || got.String() != want {
		t.Errorf("Take(%q) = %v, %v, want %s", owner, got, err, want)
	}
}

func TestPoolOrder(t *testing.T) {
	p := newPool(t, "10.0.0.0/29", "10.0.0.1") // leaves .2 to .6
	take(t, p, "a", "10.0.0.2")
	take(t, p, "b", "10.0.0.3")
	p.Free(netip.MustParseAddr("10.0.0.2"))
	take(t, p, "c", "10.0.0.4") // never used before freed
	take(t, p, "a", "10.0.0.2") // its own again
	p.Free(netip.MustParseAddr("10.0.0.3"))
	p.Free(netip.MustParseAddr("10.0.0.2"))
	p.Free(netip.MustParseAddr("10.0.0.2")) // twice is no error
	take(t, p, "d", "10.0.0.5")
	take(t, p, "e", "10.0.0.6")
	take(t, p, "f", "10.0.0.3") // the one free for the longest time
	take(t, p, "b", "10.0.0.2") // its own is taken
	_, err := p.Take("g")
	if err == nil || !strings.Contains(err.Error(), "--network4") || !strings.Contains(err.Error(), "all 5 addresses") {
		t.Errorf("exhausted: %v", err)
	}
	p.Free(netip.MustParseAddr("10.0.0.6"))
	take(t, p, "g", "10.0.0.6")
}

func TestPoolClaim(t *testing.T) {
	p := newPool(t, "10.0.0.0/24", "10.0.0.1")
	addr := netip.MustParseAddr("10.0.0.2")
	for range 2 { // again is no error
		if err := p.Claim("a", addr); err != nil {
			t.Fatal(err)
		}
	}
	if got := p.Holder(addr); got != "a" {
		t.Errorf("holder %q", got)
	}
	take(t, p, "b", "10.0.0.3") // Take passes over what was claimed
	for _, tt := range []struct{ addr, want string }{
		{"10.0.0.2", `belongs to "a"`},
		{"10.0.0.1", "--network4"},
		{"10.0.0.0", "--network4"},
		{"10.0.0.255", "--network4"},
		{"10.0.1.2", "10.0.0.0/24"},
		{"fd84::2", "--network4"},
	} {
		if err := p.Claim("x", netip.MustParseAddr(tt.addr)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Claim(%s): %v, want %q", tt.addr, err, tt.want)
		}
	}
	p.Free(addr)
	if err := p.Claim("c", addr); err != nil { // somebody else's, but free
		t.Error(err)
	}
	take(t, p, "a", "10.0.0.4")
}

func TestNewPoolRefuses(t *testing.T) {
	for _, prefix := range []netip.Prefix{
		{},
		netip.MustParsePrefix("10.0.0.1/24"),
		netip.MustParsePrefix("10.0.0.0/31"),
		netip.MustParsePrefix("10.0.0.0/32"),
		netip.MustParsePrefix("fd84::/127"),
	} {
		if _, err := NewPool(prefix, "--network4"); err == nil {
			t.Errorf("%v accepted", prefix)
		}
	}
}

func TestPoolOfAHugePrefixIsBounded(t *testing.T) {
	p := newPool(t, "fd84::/64")
	seen := make(map[netip.Addr]bool)
	for i := range 3 * maxPool {
		addr, err := p.Take(fmt.Sprint(i))
		if err != nil {
			t.Fatal(err)
		}
		seen[addr] = true
		p.Free(addr)
	}
	if len(seen) != maxPool-2 || len(p.freed) != len(seen) || len(p.prior) > len(seen) || p.order.Len() != len(seen) {
		t.Errorf("%d addresses, %d freed, %d remembered", len(seen), len(p.freed), len(p.prior))
	}
	if last := netip.MustParseAddr("fd84::fffe"); !seen[last] {
		t.Errorf("%v was never used", last)
	}
}

// Whatever the order of calls: no address has two owners, none is outside the
// pool, none gets lost.
func TestPoolAgainstAModel(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	p := newPool(t, "10.0.0.0/27", "10.0.0.1", "10.0.0.9")
	const usable = 32 - 2 - 2
	model := make(map[netip.Addr]string)
	for range 20000 {
		owner := fmt.Sprint(random.IntN(40))
		addr := netip.AddrFrom4([4]byte{10, 0, 0, byte(random.IntN(34))})
		switch random.IntN(3) {
		case 0:
			got, err := p.Take(owner)
			switch {
			case err != nil && len(model) != usable:
				t.Fatalf("exhausted with %d in use: %v", len(model), err)
			case err == nil && model[got] != "":
				t.Fatalf("%v given to %s, but belongs to %s", got, owner, model[got])
			case err == nil:
				model[got] = owner
			}
		case 1:
			if err := p.Claim(owner, addr); err == nil {
				if holder := model[addr]; holder != "" && holder != owner {
					t.Fatalf("%v claimed from %s", addr, holder)
				}
				model[addr] = owner
			}
		case 2:
			p.Free(addr)
			delete(model, addr)
		}
		if len(p.used) != len(model) {
			t.Fatalf("%d in use, want %d", len(p.used), len(model))
		}
	}
	for addr := range model {
		if b := addr.As4()[3]; b == 0 || b == 1 || b == 9 || b >= 31 {
			t.Errorf("%v was handed out", addr)
		}
	}
}

func TestHalves(t *testing.T) {
	for network, want := range map[string]string{
		"10.84.0.0/16":             "10.84.0.0/17 10.84.128.0/17",
		"10.84.3.7/16":             "10.84.0.0/17 10.84.128.0/17",
		"10.0.0.0/7":               "10.0.0.0/8 11.0.0.0/8",
		"192.168.1.0/24":           "192.168.1.0/25 192.168.1.128/25",
		"fd84:7475:6c6c:e000::/64": "fd84:7475:6c6c:e000::/65 fd84:7475:6c6c:e000:8000::/65",
	} {
		low, high := Halves(netip.MustParsePrefix(network))
		if got := fmt.Sprint(low, " ", high); got != want {
			t.Errorf("Halves(%s) = %s, want %s", network, got, want)
		}
	}
}

package proxy

import (
	"net/netip"
	"testing"
)

// Whoever is named to an application in a network that is shared is somebody of its
// family, and never one who would be taken for the proxy's own address.
func TestNameable(t *testing.T) {
	for _, tc := range []struct{ client, app, want string }{
		{"10.84.0.7:5555", "10.84.0.2:80", "10.84.0.7:5555"},
		{"[fd84::7]:5555", "[fd84::2]:80", "[fd84::7]:5555"},
		{"10.84.0.7:1", "10.84.0.2:80", "10.84.0.7:0"},
		{"[fd84::7]:1", "[fd84::2]:80", "[fd84::7]:0"},
		{"[fd84::7]:5555", "10.84.0.2:80", "192.0.2.1:0"},
		{"10.84.0.7:5555", "[fd84::2]:80", "[2001:db8::1]:0"},
	} {
		got := nameable(netip.MustParseAddrPort(tc.client), netip.MustParseAddrPort(tc.app))
		if got.String() != tc.want {
			t.Errorf("%s to %s: got %s, want %s", tc.client, tc.app, got, tc.want)
		}
	}
}

func TestSharedNeedsTheRedirectToTellItsOwn(t *testing.T) {
	own := []netip.Addr{netip.MustParseAddr("10.84.0.2"), netip.MustParseAddr("fd84::2")}
	for _, tc := range []struct {
		addresses    []netip.Addr
		showsClients bool
		ok           bool
	}{{nil, false, true}, {nil, true, true}, {own, true, true}, {own, false, false}} {
		p := &Proxy{config: Config{Addresses: tc.addresses}, showsClients: tc.showsClients}
		if err := p.checkShared(); (err == nil) != tc.ok {
			t.Errorf("%+v: got %v", tc, err)
		}
	}
	p := &Proxy{config: Config{Addresses: own}}
	if p.ownHost(true) != "10.84.0.2" || p.ownHost(false) != "fd84::2" || (&Proxy{}).ownHost(true) != "" {
		t.Error("wrong addresses to listen on")
	}
}

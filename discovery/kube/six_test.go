package kube

import (
	"net/netip"
	"testing"

	"github.com/tulle-mesh/tulle/discovery"
)

// Where IPv6 is the first of two families, or the only one, all is as with IPv4.
func TestIPv6First(t *testing.T) {
	first, only := newPod("shop/web-1", "fd00::1", "10.0.0.1"), newPod("shop/db-1", "fd00::2")
	source, state, _ := start(t,
		newService("shop/web", []string{"fd00:96::1", "10.96.0.1"}, port("", 80)),
		newSlice("shop/web", "-6", 8080, of("shop/web-1", "fd00::1")), newSlice("shop/web", "-4", 8080, of("shop/web-1", "10.0.0.1")), first,
		newService("shop/db", []string{"fd00:96::2"}, port("", 5432)),
		newSlice("shop/db", "-6", 5432, of("shop/db-1", "fd00::2")), only,
	)
	for addr, want := range map[string]string{
		"[fd00:96::1]:80":   "web.shop [fd00::1]:8080 /ns/shop/sa/web",
		"10.96.0.1:80":      "web.shop 10.0.0.1:8080 /ns/shop/sa/web",
		"[fd00:96::2]:5432": "db.shop [fd00::2]:5432 /ns/shop/sa/web",
		"[fd00::1]:9":       "web-1.shop [fd00::1]:9 /ns/shop/sa/web",
		"10.0.0.1:9":        "web-1.shop 10.0.0.1:9 /ns/shop/sa/web",
	} {
		eventually(t, addr+" is "+want, func() bool { return say(lookup(state, addr)) == want })
	}
	// Who asks for a certificate or a policy is known by either address.
	for _, addr := range []string{"fd00::1", "10.0.0.1", "fd00::2"} {
		if place := source.Place(netip.MustParseAddr(addr)); place == (discovery.Place{}) {
			t.Errorf("the pod at %s is on no node", addr)
		}
	}
	if got := source.PodAddrs("shop", "web-1", "shop.web-1"); len(got) != 2 || got[0] != netip.MustParseAddr("fd00::1") {
		t.Errorf("web-1 has the addresses %v", got)
	}
}

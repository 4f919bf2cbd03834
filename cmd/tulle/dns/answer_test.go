package dns

import (
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

type fakeNames map[string][]netip.Addr

func (f fakeNames) Lookup(name string) ([]netip.Addr, bool) {
	a, ok := f[name]
	return a, ok
}

func (f fakeNames) Reverse(addr netip.Addr) (string, bool) {
	for name, addrs := range f {
		for _, a := range addrs {
			if a == addr {
				return name, true
			}
		}
	}
	return "", netip.MustParsePrefix("10.84.0.0/16").Contains(addr)
}

var names = fakeNames{
	"web":   {netip.MustParseAddr("10.84.128.1"), netip.MustParseAddr("fd84::1")},
	"old":   {netip.MustParseAddr("10.84.128.2")},
	"web-2": {netip.MustParseAddr("10.84.0.7"), netip.MustParseAddr("fd84::7")},
}

func ask(t testing.TB, name string, typ dnsmessage.Type, edns uint16) []byte {
	t.Helper()
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 77, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: typ, Class: dnsmessage.ClassINET}},
	}
	if edns > 0 {
		m.Additionals = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName("."), Type: dnsmessage.TypeOPT, Class: dnsmessage.Class(edns)},
			Body:   &dnsmessage.OPTResource{},
		}}
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAnswer(t *testing.T) {
	const a, aaaa, ptr, mx = dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypePTR, dnsmessage.TypeMX
	for _, tc := range []struct {
		name string
		typ  dnsmessage.Type
		want string // "forward", "NXDOMAIN", "NODATA" or the record
	}{
		{"web.mesh.", a, "10.84.128.1"},
		{"WeB.MeSh.", a, "10.84.128.1"},
		{"web.mesh.", aaaa, "fd84::1"},
		{"web.mesh.", mx, "NODATA"},
		{"old.mesh.", aaaa, "NODATA"},
		{"web-2.mesh.", a, "10.84.0.7"},
		{"nope.mesh.", a, "NXDOMAIN"},
		{"a.web.mesh.", a, "NXDOMAIN"},
		{"mesh.", a, "NODATA"},
		{"web.", a, "10.84.128.1"},
		{"nope.", a, "forward"},
		{"example.org.", a, "forward"},
		{"mesh.example.", a, "forward"},
		{"1.128.84.10.in-addr.arpa.", ptr, "web.mesh."},
		{"1.128.84.10.in-addr.arpa.", a, "NODATA"},
		{"9.9.84.10.in-addr.arpa.", ptr, "NXDOMAIN"},
		{"1.1.1.1.in-addr.arpa.", ptr, "forward"},
		{"84.10.in-addr.arpa.", ptr, "forward"},
		{"7." + strings.Repeat("0.", 27) + "4.8.d.f.ip6.arpa.", ptr, "web-2.mesh."},
		{"x." + strings.Repeat("0.", 27) + "4.8.d.f.ip6.arpa.", ptr, "forward"},
	} {
		t.Run(tc.name+tc.typ.String(), func(t *testing.T) {
			response, _, v := answer(ask(t, tc.name, tc.typ, 0), "mesh", names)
			if got := describe(t, response, v); got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}

func describe(t *testing.T, response []byte, v verdict) string {
	t.Helper()
	if v == forward {
		return "forward"
	}
	var m dnsmessage.Message
	if err := m.Unpack(response); err != nil {
		t.Fatal(err)
	}
	if m.ID != 77 || !m.Response || !m.RecursionAvailable || !m.Authoritative {
		t.Errorf("bad header %+v", m.Header)
	}
	switch {
	case m.RCode == dnsmessage.RCodeNameError:
		return "NXDOMAIN"
	case len(m.Answers) == 0 && len(m.Authorities) == 1:
		return "NODATA"
	case len(m.Answers) != 1 || m.Answers[0].Header.TTL != ttl:
		t.Fatalf("got answers %v", m.Answers)
	}
	switch body := m.Answers[0].Body.(type) {
	case *dnsmessage.AResource:
		return netip.AddrFrom4(body.A).String()
	case *dnsmessage.AAAAResource:
		return netip.AddrFrom16(body.AAAA).String()
	case *dnsmessage.PTRResource:
		return body.PTR.String()
	}
	return "?"
}

func TestParseRejects(t *testing.T) {
	sound := ask(t, "web.mesh.", dnsmessage.TypeA, 0)
	response := append([]byte(nil), sound...)
	response[2] |= 0x80
	opcode := append([]byte(nil), sound...)
	opcode[2] |= 5 << 3
	two := append([]byte(nil), sound...)
	two[5] = 2
	for _, tc := range []struct {
		name string
		msg  []byte
		want verdict
		code dnsmessage.RCode
	}{
		{"empty", nil, drop, 0},
		{"half a header", sound[:7], drop, 0},
		{"a response", response, drop, 0},
		{"update", opcode, respond, dnsmessage.RCodeNotImplemented},
		{"two questions", two, respond, dnsmessage.RCodeFormatError},
		{"cut name", sound[:15], respond, dnsmessage.RCodeFormatError},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, code, v := parse(tc.msg); v != tc.want || code != tc.code {
				t.Errorf("got %v %v, want %v %v", v, code, tc.want, tc.code)
			}
		})
	}
}

func TestEDNSSize(t *testing.T) {
	for asked, want := range map[uint16]int{0: 512, 100: 512, 900: 900, 4096: 1232} {
		q, _, _ := parse(ask(t, "web.mesh.", dnsmessage.TypeA, asked))
		if q.udpSize != want || q.edns != (asked > 0) {
			t.Errorf("size %d: got %d, edns %v", asked, q.udpSize, q.edns)
		}
	}
}

func TestTruncate(t *testing.T) {
	q, _, _ := parse(ask(t, "web.mesh.", dnsmessage.TypeA, 0))
	var m dnsmessage.Message
	if err := m.Unpack(q.truncate(make([]byte, 513))); err != nil || !m.Truncated || m.ID != 77 {
		t.Errorf("got %+v, %v", m, err)
	}
}

func TestResolvConf(t *testing.T) {
	c := ParseResolvConf("# x\nnameserver 127.0.0.53\nnameserver ::1\nnameserver bad\ndomain a.example\nsearch b.example mesh\noptions ndots:2 rotate\n")
	if len(c.Nameservers) != 2 {
		t.Errorf("got %v", c.Nameservers)
	}
	got := c.ForWorkload([]netip.Addr{netip.MustParseAddr("10.84.0.1")}, "mesh")
	if want := "nameserver 10.84.0.1\nsearch mesh b.example\noptions ndots:2\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add(ask(f, "web.mesh.", dnsmessage.TypeA, 4096))
	f.Add(ask(f, "1.128.84.10.in-addr.arpa.", dnsmessage.TypePTR, 0))
	f.Add(ask(f, "example.org.", dnsmessage.TypeALL, 0))
	f.Add([]byte("\x00\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01"))
	f.Fuzz(func(t *testing.T, msg []byte) {
		response, q, v := answer(msg, "mesh", names)
		if v == forward {
			response = q.respond(dnsmessage.RCodeServerFailure, nil, "")
		}
		if v == drop {
			return
		}
		var m dnsmessage.Message
		if err := m.Unpack(q.truncate(response)); err != nil {
			t.Fatalf("response does not parse: %v", err)
		}
		if !m.Response || m.ID != q.header.ID {
			t.Fatalf("response to something else: %+v", m.Header)
		}
	})
}

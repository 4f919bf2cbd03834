package dns

import (
	"net/netip"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// Names is what the mesh knows. Both methods may be called by many goroutines.
type Names interface {
	// Lookup returns the addresses of a name given without the mesh's domain,
	// in lower case.
	Lookup(name string) ([]netip.Addr, bool)
	// Reverse returns the name of an address, without the mesh's domain. Inside
	// tells whether the address is the mesh's to answer for.
	Reverse(addr netip.Addr) (name string, inside bool)
}

// ttl is how long, in seconds, an answer of ours may be kept: short, so that a
// service that was stopped and run again is found.
const ttl = 5

// UDP payload sizes: what every client takes (RFC 1035 section 4.2.1), and
// what crosses any path unfragmented (RFC 9715 section 3).
const (
	minUDP = 512
	maxUDP = 1232
)

// query is one question as far as we need to understand it.
type query struct {
	header   dnsmessage.Header
	question dnsmessage.Question
	edns     bool
	udpSize  int // what the client can take
}

// verdict says what becomes of a message.
type verdict uint8

const (
	drop    verdict = iota // not even answerable
	respond                // the response is ours
	forward                // not the mesh's business
)

// parse reads a message that should be a query. On respond, the query is
// broken and code says how; on forward it is sound.
func parse(msg []byte) (q query, code dnsmessage.RCode, v verdict) {
	var p dnsmessage.Parser
	h, err := p.Start(msg)
	if err != nil || h.Response {
		return q, 0, drop // answering a response would make loops
	}
	q.header, q.udpSize = h, minUDP
	if h.OpCode != 0 {
		return q, dnsmessage.RCodeNotImplemented, respond
	}
	qs, err := p.AllQuestions()
	if err != nil || len(qs) != 1 {
		return q, dnsmessage.RCodeFormatError, respond
	}
	q.question = qs[0]
	if p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return q, dnsmessage.RCodeFormatError, respond
	}
	for {
		rh, err := p.AdditionalHeader()
		if err == dnsmessage.ErrSectionDone {
			return q, 0, forward
		}
		if err != nil || p.SkipAdditional() != nil {
			return q, dnsmessage.RCodeFormatError, respond
		}
		if rh.Type == dnsmessage.TypeOPT {
			// RFC 6891 section 6.2.3: the class is the size, values below 512 mean 512.
			q.edns = true
			q.udpSize = min(max(int(rh.Class), minUDP), maxUDP)
		}
	}
}

// answer decides about one message. When the verdict is respond, the response
// is whole and has to be cut by the caller if it goes out by UDP.
func answer(msg []byte, domain string, names Names) (response []byte, q query, v verdict) {
	q, code, v := parse(msg)
	if v == respond {
		return q.respond(code, nil, ""), q, respond
	}
	if v == drop || q.question.Class != dnsmessage.ClassINET {
		return nil, q, v
	}
	name := strings.ToLower(strings.TrimSuffix(q.question.Name.String(), "."))
	if addr, ok := parseReverse(name); ok {
		owner, inside := names.Reverse(addr)
		if !inside {
			return nil, q, forward
		}
		return q.respondPTR(owner, domain), q, respond
	}
	label, ours := strings.CutSuffix(name, "."+domain)
	if !ours && name != domain {
		// Programs that ignore the search list (nginx's resolver) ask for the bare name.
		if addrs, ok := names.Lookup(name); ok && !strings.Contains(name, ".") {
			return q.respondAddrs(addrs, domain), q, respond
		}
		return nil, q, forward
	}
	if name == domain {
		return q.respond(dnsmessage.RCodeSuccess, nil, domain), q, respond
	}
	addrs, ok := names.Lookup(label)
	if !ok {
		return q.respond(dnsmessage.RCodeNameError, nil, domain), q, respond
	}
	return q.respondAddrs(addrs, domain), q, respond
}

func (q *query) respondAddrs(addrs []netip.Addr, domain string) []byte {
	var records []dnsmessage.ResourceBody
	for _, a := range addrs {
		wants4 := q.question.Type == dnsmessage.TypeA || q.question.Type == dnsmessage.TypeALL
		wants6 := q.question.Type == dnsmessage.TypeAAAA || q.question.Type == dnsmessage.TypeALL
		switch {
		case a.Is4() && wants4:
			records = append(records, &dnsmessage.AResource{A: a.As4()})
		case a.Is6() && wants6:
			records = append(records, &dnsmessage.AAAAResource{AAAA: a.As16()})
		}
	}
	return q.respond(dnsmessage.RCodeSuccess, records, domain)
}

func (q *query) respondPTR(owner, domain string) []byte {
	if owner == "" {
		return q.respond(dnsmessage.RCodeNameError, nil, domain)
	}
	name, err := dnsmessage.NewName(owner + "." + domain + ".")
	if err != nil {
		return q.respond(dnsmessage.RCodeServerFailure, nil, "")
	}
	if q.question.Type != dnsmessage.TypePTR && q.question.Type != dnsmessage.TypeALL {
		return q.respond(dnsmessage.RCodeSuccess, nil, domain)
	}
	return q.respond(dnsmessage.RCodeSuccess, []dnsmessage.ResourceBody{&dnsmessage.PTRResource{PTR: name}}, domain)
}

// respond builds a response. A negative answer carries the SOA of the domain,
// "" for none, so that it may be kept no longer than ttl (RFC 2308 section 3).
func (q *query) respond(code dnsmessage.RCode, records []dnsmessage.ResourceBody, domain string) []byte {
	m := dnsmessage.Message{Header: dnsmessage.Header{
		ID: q.header.ID, Response: true, OpCode: q.header.OpCode, Authoritative: domain != "",
		RecursionDesired: q.header.RecursionDesired, RecursionAvailable: true, RCode: code,
	}}
	if q.question.Name.Length > 0 {
		m.Questions = []dnsmessage.Question{q.question}
	}
	for _, body := range records {
		m.Answers = append(m.Answers, dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: q.question.Name, Class: dnsmessage.ClassINET, TTL: ttl},
			Body:   body,
		})
	}
	if len(records) == 0 && domain != "" {
		m.Authorities = append(m.Authorities, soa(domain))
	}
	if q.edns {
		var opt dnsmessage.ResourceHeader
		if opt.SetEDNS0(maxUDP, code, false) == nil {
			m.Additionals = append(m.Additionals, dnsmessage.Resource{Header: opt, Body: &dnsmessage.OPTResource{}})
		}
	}
	out, err := m.Pack()
	if err != nil {
		return nil // only a name we made ourselves could do this
	}
	return out
}

func soa(domain string) dnsmessage.Resource {
	zone := dnsmessage.MustNewName(domain + ".")
	return dnsmessage.Resource{
		Header: dnsmessage.ResourceHeader{Name: zone, Class: dnsmessage.ClassINET, TTL: ttl},
		Body: &dnsmessage.SOAResource{
			NS: zone, MBox: zone, Serial: 1, Refresh: ttl, Retry: ttl, Expire: ttl, MinTTL: ttl,
		},
	}
}

// truncate cuts a response to what the client takes by UDP; it will come
// again by TCP.
func (q *query) truncate(response []byte) []byte {
	if len(response) <= q.udpSize {
		return response
	}
	m := dnsmessage.Message{Header: dnsmessage.Header{
		ID: q.header.ID, Response: true, Truncated: true,
		RecursionDesired: q.header.RecursionDesired, RecursionAvailable: true,
	}, Questions: []dnsmessage.Question{q.question}}
	out, err := m.Pack()
	if err != nil {
		return nil
	}
	return out
}

// parseReverse reads a name below in-addr.arpa or ip6.arpa that stands for one
// whole address.
func parseReverse(name string) (netip.Addr, bool) {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		parts := strings.Split(rest, ".")
		if len(parts) != 4 {
			return netip.Addr{}, false
		}
		addr, err := netip.ParseAddr(parts[3] + "." + parts[2] + "." + parts[1] + "." + parts[0])
		return addr, err == nil
	}
	rest, ok := strings.CutSuffix(name, ".ip6.arpa")
	if !ok || len(rest) != 63 {
		return netip.Addr{}, false
	}
	var a [16]byte
	for i := range 32 {
		c := rest[2*i]
		digit := strings.IndexByte("0123456789abcdef", c)
		if digit < 0 || (i < 31 && rest[2*i+1] != '.') {
			return netip.Addr{}, false
		}
		nibble := 31 - i
		a[nibble/2] |= byte(digit) << (4 * (1 - nibble%2))
	}
	return netip.AddrFrom16(a), true
}

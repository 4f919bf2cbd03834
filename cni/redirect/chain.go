package redirect

import "net/netip"

// A chain is the list of rules that a packet meets at one hook. Both backends
// are renderings of the same chains, so that they cannot differ in what they
// redirect.
//
//	             workload opens a connection        others open one to it
//	nat          outbound (output hook)             inbound (prerouting hook)
//	filter       outbound-guard (output hook)       inbound-guard (input hook)
//
// The kernel shows a nat chain only the first packet that connection tracking
// sees of a connection; a filter chain sees every packet.
//
// That first packet need not be a SYN, and the redirect does not ask for one.
// Tracking forgets a half-closed connection after a minute; what an application
// then writes into it, a pooled connection perhaps that its server has closed,
// must come to the proxy's port and be reset there. Left alone, it would cross
// the network in plaintext.
type chain struct {
	name  string
	table table
	hook  hook
	rules []rule
}

type table string

const (
	nat    table = "nat"
	filter table = "filter"
)

type hook string

const (
	prerouting hook = "prerouting"
	input      hook = "input"
	output     hook = "output"
)

// inbound tells whether packets come from outside at this hook.
func (h hook) inbound() bool { return h != output }

// A rule gives its verdict to the packets that match; the first one decides.
type rule struct {
	match   match
	port    uint16       // for dstPort
	uid     uint32       // for ownedBy
	subnet  netip.Prefix // for peerIn
	verdict verdict
	to      uint16 // for redirect: the port
	why     string // for the reader of the ruleset
}

type match int

const (
	anyTCP     match = iota
	notTCP           // UDP, ICMP, …
	tracked          // connection tracking knows what it belongs to
	ownedBy          // sent by a socket of this uid; never matches a packet without a socket
	onLoopback       // does not leave, or did not enter, the namespace
	dstPort          // TCP to this port
	peerIn           // the other side's address is in this subnet
)

type verdict int

const (
	leave    verdict = iota // as it is
	redirect                // to a port of this namespace
	drop
)

// chains returns the rules, which must be valid and have their defaults, as
// the kernel should have them.
func (r Rules) chains() []chain {
	inbound, outbound := r.exemptInbound(), r.exemptOutbound()
	tcpOnly := []rule{{match: notTCP, why: "only TCP is meshed"}}
	guarded := append([]rule{{match: tracked, why: "translated as its connection is"}}, tcpOnly...)
	return []chain{
		{"inbound-guard", filter, input, join(guarded, inbound,
			rule{verdict: drop, why: "an untranslated packet would make the kernel reset a healthy connection"})},
		{"outbound-guard", filter, output, join(guarded, outbound,
			rule{verdict: drop, why: "an untranslated packet would carry plaintext past the proxy"})},
		{"inbound", nat, prerouting, join(tcpOnly, inbound,
			rule{verdict: redirect, to: uint16(r.InboundPort), why: "to the proxy"})},
		{"outbound", nat, output, join(tcpOnly, outbound,
			rule{verdict: redirect, to: uint16(r.OutboundPort), why: "to the proxy"})},
	}
}

func (r Rules) exemptInbound() []rule {
	// Packets on loopback got their translation, or the lack of it, when they
	// were sent.
	rules := []rule{{match: onLoopback, why: "calls inside the workload"}}
	for _, port := range r.SkipInbound {
		rules = append(rules, rule{match: dstPort, port: uint16(port), why: "skipped inbound port"})
	}
	return append(rules, r.exemptSubnets()...)
}

func (r Rules) exemptOutbound() []rule {
	rules := []rule{
		{match: ownedBy, uid: uint32(r.ProxyUID), why: "the proxy's own connections"},
		{match: onLoopback, why: "calls inside the workload, also by its own address"},
	}
	for _, port := range r.SkipOutbound {
		rules = append(rules, rule{match: dstPort, port: uint16(port), why: "skipped outbound port"})
	}
	return append(rules, r.exemptSubnets()...)
}

func (r Rules) exemptSubnets() []rule {
	var rules []rule
	for _, subnet := range r.SkipSubnets {
		rules = append(rules, rule{match: peerIn, subnet: subnet, why: "skipped subnet"})
	}
	return rules
}

func join(first, then []rule, last rule) []rule {
	rules := append(make([]rule, 0, len(first)+len(then)+1), first...)
	return append(append(rules, then...), last)
}

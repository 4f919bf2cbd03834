package redirect

import (
	"fmt"
	"slices"
	"strings"
)

// chainPrefix marks the iptables chains that are ours.
const chainPrefix = "TULLE_"

// An iptTable is what is ours in one table of iptables, in the words of
// iptables-save.
type iptTable struct {
	name   table
	chains []iptChain
	jumps  []string // rules of other chains that lead into ours: "OUTPUT -j TULLE_OUTBOUND"
}

type iptChain struct {
	name  string
	rules []string // "TULLE_OUTBOUND -o lo -j RETURN"
}

// render says in iptables' words what chains say, for IPv4 or IPv6.
func render(chains []chain, v6 bool) []iptTable {
	var tables []iptTable
	for _, c := range chains {
		if len(tables) == 0 || tables[len(tables)-1].name != c.table {
			tables = append(tables, iptTable{name: c.table})
		}
		t := &tables[len(tables)-1]
		name := chainPrefix + strings.ToUpper(strings.ReplaceAll(c.name, "-", "_"))
		rendered := iptChain{name: name}
		for _, r := range c.rules {
			if r.match == peerIn && r.subnet.Addr().Is6() != v6 {
				continue
			}
			rendered.rules = append(rendered.rules, name+" "+iptMatch(r, c.hook)+" "+iptVerdict(r))
		}
		t.chains = append(t.chains, rendered)
		t.jumps = append(t.jumps, strings.ToUpper(string(c.hook))+" -j "+name)
	}
	return tables
}

func iptMatch(r rule, at hook) string {
	switch r.match {
	case notTCP:
		return "! -p tcp"
	case tracked:
		return "-m conntrack ! --ctstate INVALID,UNTRACKED"
	case ownedBy:
		// Never negated: "! --uid-owner" also matches packets without a socket.
		return fmt.Sprintf("-m owner --uid-owner %d", r.uid)
	case onLoopback:
		if at.inbound() {
			return "-i lo"
		}
		return "-o lo"
	case dstPort:
		return fmt.Sprintf("-p tcp -m tcp --dport %d", r.port)
	case peerIn:
		if at.inbound() {
			return "-s " + r.subnet.String()
		}
		return "-d " + r.subnet.String()
	}
	return "-p tcp"
}

func iptVerdict(r rule) string {
	switch r.verdict {
	case redirect:
		return fmt.Sprintf("-j REDIRECT --to-ports %d", r.to)
	case drop:
		return "-j DROP"
	}
	return "-j RETURN"
}

// parseSaved picks out of iptables-save's output what is ours. The text comes
// from a program of the system; lines it does not know are others'.
func parseSaved(saved string) []iptTable {
	var tables []iptTable
	var current iptTable
	for line := range strings.Lines(saved) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, "*"):
			current = iptTable{name: table(line[1:])}
		case strings.HasPrefix(line, ":"+chainPrefix):
			name, _, _ := strings.Cut(line[1:], " ")
			current.chains = append(current.chains, iptChain{name: name})
		case strings.HasPrefix(line, "-A "):
			current.addSaved(line[len("-A "):])
		case line == "COMMIT" && (len(current.chains) > 0 || len(current.jumps) > 0):
			tables = append(tables, current)
		}
	}
	return tables
}

// addSaved takes up a rule, if it stands in a chain of ours or leads to one.
func (t *iptTable) addSaved(rule string) {
	chain, _, _ := strings.Cut(rule, " ")
	if i := slices.IndexFunc(t.chains, func(c iptChain) bool { return c.name == chain }); i >= 0 {
		t.chains[i].rules = append(t.chains[i].rules, rule)
		return
	}
	// The target comes last, and a jump has nothing after its target.
	words := strings.Fields(rule)
	if n := len(words); n >= 3 && (words[n-2] == "-j" || words[n-2] == "-g") && strings.HasPrefix(words[n-1], chainPrefix) {
		t.jumps = append(t.jumps, rule)
	}
}

// transition returns the input that makes iptables-restore --noflush turn what
// is ours from one state into another, a transaction for each table; "" if
// there is nothing to do.
func transition(from, to []iptTable) string {
	var b strings.Builder
	for _, name := range []table{filter, nat} {
		transitTable(&b, name, find(from, name), find(to, name))
	}
	return b.String()
}

func find(tables []iptTable, name table) iptTable {
	for _, t := range tables {
		if t.name == name {
			return t
		}
	}
	return iptTable{name: name}
}

func transitTable(b *strings.Builder, name table, from, to iptTable) {
	if len(from.chains)+len(from.jumps)+len(to.chains)+len(to.jumps) == 0 {
		return
	}
	fmt.Fprintf(b, "*%s\n", name)
	for _, c := range to.chains {
		fmt.Fprintf(b, ":%s - [0:0]\n", c.name) // makes the chain, or empties it
	}
	for _, jump := range from.jumps {
		fmt.Fprintf(b, "-D %s\n", jump)
	}
	for _, c := range to.chains {
		for _, rule := range c.rules {
			fmt.Fprintf(b, "-A %s\n", rule)
		}
	}
	// Ours go first, so that no other translation of addresses takes a packet
	// before them.
	for _, jump := range slices.Backward(to.jumps) {
		hook, rest, _ := strings.Cut(jump, " ")
		fmt.Fprintf(b, "-I %s 1 %s\n", hook, rest)
	}
	for _, c := range from.chains {
		if !slices.ContainsFunc(to.chains, func(kept iptChain) bool { return kept.name == c.name }) {
			fmt.Fprintf(b, "-F %s\n-X %s\n", c.name, c.name)
		}
	}
	b.WriteString("COMMIT\n")
}
